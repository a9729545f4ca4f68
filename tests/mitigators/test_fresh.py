"""The modules' own initializers draw new parameters, in their order, with random numbers of their own."""

import copy
import random
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from supple import NetworkReset, Population, ReDo, ShrinkAndPerturb, plasticity_test
from supple.mitigators.fresh import FreshParameters
from support.zoo import PatchEmbeddings, Tied


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def fresh(network, **options):
    return FreshParameters(network, [name for name, _ in network.named_parameters()], **options)


class ZeroHead(nn.Module):
    """Its own initializer, after its parts', sets the head to zero."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(3, 3), nn.Linear(3, 2)
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.zeros_(self.head.weight)


LAYERS = {
    "linear": lambda: nn.Linear(3, 4),
    "conv": lambda: nn.Conv2d(2, 3, 2),
    "conv-transpose": lambda: nn.ConvTranspose2d(4, 6, 3, groups=2),
    "without-bias": lambda: nn.Linear(3, 4, bias=False),
    "norm": lambda: nn.BatchNorm1d(3),
    "attention": lambda: nn.MultiheadAttention(4, 2),
    "lstm": lambda: nn.LSTM(3, 4),
    "nested": lambda: nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2))),
    "zero-head": ZeroHead,
}


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_values_are_those_of_a_new_network(name, coarse):
    """The same range and the same constants entry by entry: constant where a new network always is, new elsewhere."""
    drawn = [fresh(LAYERS[name](), coarse=coarse).draw(generators(seed)) for seed in range(3)]
    built = [dict(LAYERS[name]().named_parameters()) for _ in range(3)]
    for key, value in drawn[0].items():
        constant = all(torch.equal(built[0][key], other[key]) for other in built)
        assert value.shape == built[0][key].shape
        assert not value.requires_grad
        for other in drawn[1:]:
            assert torch.equal(value, other[key]) == constant, key
        if constant:
            assert torch.equal(value, built[0][key]), key
        else:
            ratio = (
                torch.cat([d[key].flatten() for d in drawn]).std()
                / torch.cat([b[key].detach().flatten() for b in built]).std()
            )
            assert 0.4 < ratio < 2.5, key


def test_a_function_that_knows_only_the_network_in_use_is_refused_before_it_writes():
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    network[0].reset_parameters = lambda: nn.init.orthogonal_(network[0].weight)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    before = network[0].weight.detach().clone()
    data = [(torch.randn(4, 4), torch.randint(2, (4,)))]
    for build in (
        ReDo,
        NetworkReset,
        ShrinkAndPerturb,
        lambda network: plasticity_test(network, loss, data, optimizer=optimizer, steps=1, progress=False),
    ):
        with pytest.raises(ValueError, match=r"expected a reset_parameters\(\) that belongs to its Linear"):
            build(network)
        assert torch.equal(network[0].weight, before)


def loss(network, batch):
    return nn.functional.cross_entropy(network(batch[0]), batch[1])


def sevens(layer):
    for parameter in layer.parameters():
        nn.init.constant_(parameter, 7.0)


def test_an_initialization_given_to_a_layer_later_is_its_own_also_if_coarse():
    layer = nn.Linear(3, 4)
    layer.reset_parameters = partial(sevens, layer)
    assert (fresh(layer, coarse=True).draw(generators(0))["weight"] == 7).all()


@pytest.mark.parametrize("layer", [lambda: nn.Linear(90, 700), lambda: nn.ConvTranspose1d(80, 60, 6, groups=4)])
def test_coarse_values_are_uniform_to_16_bits_where_torchs_are(layer):
    """Midpoints of 65,536 equal parts of the range that torch draws from, each part as likely as any other."""
    network = layer()
    bound = max(parameter.detach().abs().max() for parameter in network.parameters()).item()
    drawn = fresh(network, coarse=True).draw(generators(0))
    for value in drawn.values():
        assert value.abs().max() < 1.01 * bound
    values = drawn["weight"].double().flatten()
    parts = values / (90**-0.5) * 2**15 - 0.5
    torch.testing.assert_close(parts, parts.round(), rtol=0, atol=0.01)
    counts = (parts.round() + 2**15).long().div(2**9, rounding_mode="floor").bincount(minlength=128).double()
    expected = values.numel() / 128
    spread = ((counts - expected).square() / expected).sum()  # chi-squared with 127 degrees of freedom
    assert len(counts) == 128
    assert abs(spread - 127) < 4 * (2 * 127) ** 0.5
    neighbours = torch.corrcoef(torch.stack([values[:-1], values[1:]]))[0, 1]
    assert abs(neighbours) < 4 / len(values) ** 0.5


@pytest.mark.parametrize("coarse", [False, True])
def test_each_draw_is_another_and_repeats_by_the_generator(coarse):
    network = nn.Linear(3, 2)
    first, again = fresh(network, coarse=coarse), fresh(network, coarse=coarse)
    one, same = generators(1, 1)
    draws = [first.draw([one])["weight"] for _ in range(3)]
    repeated = [again.draw([same])["weight"] for _ in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(draws, repeated, strict=True))
    assert not torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[1], draws[2])


def test_network_and_global_random_state_are_left_alone():
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    network(torch.randn(5, 3))
    before, random = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    fresh(network).draw(generators(0))
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


@pytest.mark.parametrize("coarse", [False, True])
def test_a_population_draws_for_each_member_what_it_would_draw_alone(coarse):
    population = Population(lambda: nn.Linear(3, 2), [0, 1])
    alone = [fresh(population.member(0), coarse=coarse).draw(generators(seed)) for seed in (7, 8)]
    together = FreshParameters(population, ["weight", "bias"], coarse=coarse).draw(generators(7, 8))
    for name, value in together.items():
        assert torch.equal(value, torch.stack([member[name] for member in alone]))
    assert not torch.equal(*together["weight"])


@pytest.mark.parametrize("coarse", [False, True])
def test_a_draw_is_a_copy(coarse):
    parameters = fresh(nn.Linear(3, 2), coarse=coarse)
    first = parameters.draw(generators(0))["weight"]
    kept = first.clone()
    parameters.draw(generators(1))
    assert torch.equal(first, kept)


@pytest.mark.parametrize("coarse", [False, True])
def test_the_dtype_is_the_networks(coarse):
    assert (
        fresh(nn.Linear(3, 2, dtype=torch.bfloat16), coarse=coarse).draw(generators(0))["weight"].dtype
        == torch.bfloat16
    )


def test_a_module_that_cannot_draw_is_named_unless_left_out():
    network = nn.Sequential(nn.Linear(3, 4), PatchEmbeddings())
    with pytest.raises(
        ValueError, match=r"reset_parameters\(\).*PatchEmbeddings.*1\.position_embeddings.*add the method"
    ):
        fresh(network)
    assert FreshParameters(network, ["0.weight"]).draw(generators(0)).keys() == {"0.weight"}


def test_modules_that_another_one_initializes_are_told_how_unless_they_know():
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    network = BertModel(BertConfig(vocab_size=500, **sizes))
    with pytest.raises(ValueError, match=r"themselves, got those of a BertModel, .*_init_weights"):
        fresh(network)
    for module in network.modules():
        module.reset_parameters = partial(network._init_weights, module)
    drawn = fresh(network).draw(generators(0))
    assert drawn["embeddings.word_embeddings.weight"].std().item() == pytest.approx(0.02, rel=0.1)


def test_a_parameter_that_two_kinds_of_modules_draw_is_named_unless_they_agree_or_it_is_left_out():
    network = Tied()
    with pytest.raises(ValueError, match=r"one initialization.*Embedding and Linear, which share 'weight'.*leave"):
        fresh(network)
    assert FreshParameters(network, ["head.bias"]).draw(generators(0)).keys() == {"head.bias"}
    bare = nn.ModuleList([nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)])
    bare[0].weight = bare[1].weight
    bare[0].reset_parameters = bare[1].reset_parameters
    assert fresh(bare).draw(generators(0))["0.weight"].abs().max() <= 0.5
    same = nn.ModuleList([nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)])
    same[1].weight = same[0].weight
    assert fresh(same).draw(generators(0)).keys() == {"0.weight"}


class DrawsElsewhere(nn.Linear):
    """Draws its weight with NumPy and its bias with Python."""

    def reset_parameters(self):
        with torch.no_grad():
            self.weight.copy_(torch.from_numpy(np.random.randn(*self.weight.shape)))
            self.bias.fill_(random.random())


def test_other_generators_give_new_values_by_seed_and_keep_their_state():
    network = DrawsElsewhere(2, 3)
    np.random.seed(7)
    random.seed(7)
    before = np.random.get_state()[1].tolist(), np.random.get_state()[2], random.getstate()
    one, same, other = (fresh(network).draw(generators(seed)) for seed in (0, 0, 1))
    for name, value in one.items():
        assert torch.equal(value, same[name])
        assert not torch.equal(value, other[name])
    first, second = Population(lambda: DrawsElsewhere(2, 3), seeds=[0, 2**40 + 1]).stacked.weight
    assert not torch.equal(first, second)
    assert (np.random.get_state()[1].tolist(), np.random.get_state()[2], random.getstate()) == before
