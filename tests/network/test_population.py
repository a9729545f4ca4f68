"""A population's members against the same networks trained alone."""

import copy

import pytest
import torch
from torch import nn

from supple import Population, SpectralRegularizer
from supple.network.population import copy_of
from support.keepers import CONTAINERS, Keeper
from support.zoo import ZOO, Tied

SEEDS = [5, 0, 11]
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # attention under vmap


def mlp():
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


def batch_normed():
    return nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def layer_normed():
    return nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 3))


def instance_normed():
    return nn.Sequential(
        nn.Conv1d(1, 4, 3, bias=False), nn.InstanceNorm1d(4, affine=True), nn.Flatten(), nn.Linear(16, 3)
    )


# No bias before a normalization (or on the keys of a softmax) that takes it out again: its gradient is rounding alone,
# which Adam makes as large as any other, so that no two ways of computing it agree.


class Attentive(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, 8)
        self.attention = nn.MultiheadAttention(8, 2, bias=False, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens):
        x = self.embedding(tokens)
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


MODELS = {
    mlp: (6,),
    layer_normed: (6,),
    batch_normed: (1, 6, 6),
    instance_normed: (1, 6),
    Attentive: (5,),
}
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
    "adam-fused": lambda parameters: torch.optim.Adam(parameters, lr=1e-3, fused=True),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=1e-3),
}


def lone(make_model, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make_model()


def batches(make_model, steps=50):
    """Inputs and labels, other ones for each member."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        shape = (len(SEEDS), 32, *MODELS[make_model])
        x = (
            torch.randint(9, shape, generator=generator)
            if make_model is Attentive
            else torch.randn(shape, generator=generator)
        )
        yield x, torch.randint(3, shape[:2], generator=generator)


def assert_same(population, networks, **tolerance):
    """Parameters and buffers of each member; exactly, unless a tolerance is given."""
    for index, network in enumerate(networks):
        member = population.member(index).state_dict()
        assert member.keys() == network.state_dict().keys()
        for name, value in network.state_dict().items():
            assert member[name].dtype == value.dtype
            torch.testing.assert_close(
                member[name].cpu(),
                value,
                **tolerance or {"rtol": 0, "atol": 0},
                msg=lambda m, name=name: f"{name}: {m}",
            )


@pytest.mark.parametrize("make_model", ZOO.values(), ids=ZOO)
def test_members_start_as_lone_networks_with_their_seed(make_model):
    assert_same(Population(make_model, SEEDS), [lone(make_model, seed) for seed in SEEDS])


@pytest.mark.parametrize("make_model", MODELS)
@pytest.mark.parametrize("training", [True, False])
def test_outputs_are_those_of_lone_networks(make_model, training):
    population = Population(make_model, SEEDS).train(training)
    ((x, _),) = batches(make_model, steps=1)
    outputs = population(x)
    for index, seed in enumerate(SEEDS):
        torch.testing.assert_close(outputs[index], lone(make_model, seed).train(training)(x[index]))


def train(network, optimizer, x, y):
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(network(x).flatten(0, -2), y.flatten(), reduction="sum") / x.shape[-1]
    loss.backward()
    optimizer.step()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("make_model", MODELS)
def test_members_follow_lone_networks_on_the_cpu_for_20_steps(make_model, optimizer, device):
    if make_model is not mlp and optimizer not in ("adam", "sgd"):
        pytest.skip("what the optimizers differ in does not depend on the network")
    population, networks = Population(make_model, SEEDS).to(device), [lone(make_model, seed) for seed in SEEDS]
    start = copy.deepcopy(population)
    optimizers = [OPTIMIZERS[optimizer](network.parameters()) for network in networks]
    together = OPTIMIZERS[optimizer](population.parameters())
    for x, y in batches(make_model, steps=20):
        train(population, together, x.to(device), y.to(device))
        for index, network in enumerate(networks):
            train(network, optimizers[index], x[index], y[index])
    assert_same(population, networks, rtol=1e-4, atol=1e-5)
    for name, value in start.named_parameters():
        assert not torch.equal(value, population.get_parameter(name)), "nothing was trained"


@pytest.mark.parametrize("decoupled", [False, True])
def test_a_strength_acts_on_its_own_member_alone(decoupled):
    """Strength 0 is a network without the method, bit for bit."""
    regularized, plain = Population(mlp, SEEDS), Population(mlp, SEEDS)
    with_method = torch.optim.Adam(regularized.parameters(), lr=1e-3)
    without = torch.optim.Adam(plain.parameters(), lr=1e-3)
    SpectralRegularizer(regularized, strength=torch.tensor([0.0, 1.0, 0.0]), decoupled=decoupled).attach(with_method)
    for x, y in batches(mlp, steps=5):
        train(regularized, with_method, x, y)
        train(plain, without, x, y)
    for a, b in zip(regularized.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a[0], b[0])
        assert not torch.equal(a[1], b[1])
        assert torch.equal(a[2], b[2])


def test_the_global_random_state_is_untouched():
    before = torch.get_rng_state()
    population = Population(mlp, SEEDS)
    population.member(0)
    population(torch.zeros(3, 2, 6))
    assert torch.equal(before, torch.get_rng_state())


def test_batch_norm_keeps_statistics_for_each_member():
    population, networks = Population(batch_normed, SEEDS), [lone(batch_normed, seed) for seed in SEEDS]
    for x, _ in batches(batch_normed, steps=4):
        population(x)
        for index, network in enumerate(networks):
            network(x[index])
    for index, network in enumerate(networks):
        member = population.member(index)
        torch.testing.assert_close(member[1].running_mean, network[1].running_mean)
        torch.testing.assert_close(member[1].running_var, network[1].running_var)
        assert member[1].num_batches_tracked.item() == 4
        assert member[1].num_batches_tracked.shape == ()
    means = population.stacked[1].running_mean
    assert not torch.allclose(means[0], means[1])


def test_eval_uses_the_statistics_and_leaves_them():
    population = Population(batch_normed, SEEDS)
    ((x, _),) = batches(batch_normed, steps=1)
    population(x)
    buffers = {name: value.clone() for name, value in population.named_buffers()}
    population.eval()
    first, second = population(x), population(x.flip(1))
    assert all(torch.equal(buffers[name], value) for name, value in population.named_buffers())
    torch.testing.assert_close(first, second.flip(1))
    member = population.member(1)
    assert not member.training
    torch.testing.assert_close(first[1], member(x[1]))
    assert population.train().member(1).training


def test_dropout_draws_differently_for_each_member():
    def make_model():
        layer = nn.Linear(4, 64, bias=False)
        nn.init.ones_(layer.weight)
        return nn.Sequential(layer, nn.Dropout(0.5))

    population = Population(make_model, [0, 1])
    x = torch.ones(2, 8, 4)
    first, second = population(x), population(x)
    for outputs in (first, second):
        assert set(outputs.unique().tolist()) == {0.0, 8.0}
        assert not torch.equal(outputs[0], outputs[1])
        assert 0.4 < (outputs == 0).float().mean() < 0.6
    assert not torch.equal(first, second)
    population.eval()
    assert torch.equal(population(x), torch.full((2, 8, 64), 4.0))


def test_a_member_is_an_independent_ordinary_module():
    population = Population(batch_normed, SEEDS)
    before = copy.deepcopy(population.state_dict())
    member = population.member(1)
    assert type(member) is nn.Sequential
    assert all(type(parameter) is nn.Parameter and parameter.is_leaf for parameter in member.parameters())
    optimizer = torch.optim.SGD(member.parameters(), lr=1.0)
    member(torch.randn(8, 1, 6, 6)).square().mean().backward()
    optimizer.step()
    assert all(torch.equal(before[name], value) for name, value in population.state_dict().items())
    assert all(parameter.grad is None for parameter in population.parameters())
    fresh = lone(batch_normed, 77)
    fresh.load_state_dict(member.state_dict())


def test_members_count_from_either_end():
    population = Population(mlp, SEEDS)
    assert len(population) == 3
    assert torch.equal(population.member(-1)[0].weight, population.member(2)[0].weight)
    for index in (3, -4):
        with pytest.raises(IndexError):
            population.member(index)


def test_tied_weights_stay_tied():
    population = Population(Tied, SEEDS)
    stacked = population.stacked
    assert stacked.head.weight is stacked.embedding.weight
    assert len(list(population.parameters())) == 2
    member = population.member(0)
    assert member.head.weight is member.embedding.weight
    tokens = torch.randint(7, (3, 5))
    optimizer = torch.optim.SGD(population.parameters(), lr=0.1)
    for index, seed in enumerate(SEEDS):
        network = lone(Tied, seed)
        torch.testing.assert_close(population(tokens)[index], network(tokens[index]))
    population(tokens).square().mean().backward()
    optimizer.step()
    assert stacked.head.weight is stacked.embedding.weight


def test_frozen_parameters_stay_frozen():
    def make_model():
        network = mlp()
        network[0].requires_grad_(False)
        return network

    population = Population(make_model, SEEDS)
    flags = [parameter.requires_grad for parameter in population.parameters()]
    assert flags == [False, False, True, True]
    assert [parameter.requires_grad for parameter in population.member(0).parameters()] == flags


def test_state_dict_round_trip():
    population, other = Population(batch_normed, SEEDS), Population(batch_normed, [7, 8, 9])
    ((x, _),) = batches(batch_normed, steps=1)
    population(x)
    other.load_state_dict(population.state_dict())
    assert torch.equal(population.eval()(x), other.eval()(x))


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([nn.Linear(2, 3, bias=False), nn.Linear(2, 4, bias=False)], r"weight.*[\(\[]3, 2.*[\(\[]4, 2"),
        ([nn.Linear(2, 3), nn.Linear(2, 3, bias=False)], "bias"),
        ([nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False)], "num_batches_tracked|running"),
    ],
    ids=["shape", "missing", "buffers"],
)
def test_networks_that_do_not_match_are_refused(models, message):
    models = iter(models)
    with pytest.raises(ValueError, match=message):
        Population(lambda: next(models), [0, 1])


def test_no_seed_is_refused():
    with pytest.raises(ValueError, match="seed"):
        Population(mlp, [])


def test_one_batch_for_all_members_by_expanding():
    population = Population(mlp, SEEDS)
    x = torch.randn(4, 6)
    outputs = population(x.expand(3, *x.shape))
    for index in range(3):
        torch.testing.assert_close(outputs[index], population.member(index)(x))


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_network_that_keeps_tensors_with_a_graph_is_copied_without_it(container):
    network = Keeper(container)
    network(torch.randn(5, 6))
    copied = copy_of(network, shared=[network.a.weight])
    assert copied.a.weight is network.a.weight
    assert copied.b.weight is not network.b.weight
    (kept,), (mine,) = (
        [leaf for leaf in torch.utils._pytree.tree_leaves(one.kept) if leaf is not None] for one in (network, copied)
    )
    assert kept.requires_grad
    assert not mine.requires_grad
    assert mine is not kept
    assert torch.equal(mine, kept)
