"""Which activations are looked at, and what is said about them."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import relu

from supple import Population, ReDo
from supple.diagnostics import DIAGNOSTICS, Inspection
from supple.diagnostics.activations import dead_units, dormant_units, feature_rank, representation_change
from support.probed_networks import NETWORKS, network_and_probe


def seen(network, x):
    return {name: h.cpu().numpy() for name, h in Inspection(network, x).activations.items()}


def assert_seen(network, x, expected, device):
    """What the network is given on the device, where the probe need not lie."""
    found = seen(network.to(device), x)
    assert list(found) == list(expected)
    for name, h in expected.items():
        np.testing.assert_allclose(found[name], h.detach().numpy(), rtol=1e-5, atol=1e-6, err_msg=name)


# What is looked at.


def test_what_each_linear_layer_is_given(device):
    network, x, _ = network_and_probe("perceptron")
    assert_seen(network, x, {"3": network[:3](x), "5": network[:5](x)}, device)


def test_channels_behind_in_place_activations_and_a_shortcut(device):
    network, x, _ = network_and_probe("residual")
    network, x = network.double().eval(), x.double()
    stem = relu(network.norm1(network.stem(x)))
    inner = relu(network.norm2(network.conv1(stem)))
    pooled = relu(network.conv2(inner) + network.down(stem)).mean((2, 3))
    as_rows = {"conv1": stem, "conv2": inner}
    found = seen(network.to(device), x)
    assert list(found) == ["conv1", "conv2", "head"], "what the shortcut takes in is what conv1 takes in"
    for name, h in as_rows.items():
        np.testing.assert_allclose(found[name], h.permute(0, 2, 3, 1).flatten(0, 2).detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(found["head"], pooled.detach().numpy(), rtol=1e-5)


def test_tokens_and_attention(device):
    network, x, _ = network_and_probe("transformer")
    network.double().eval()
    block = network.block
    embedded = network.embedding(x) + network.positions
    attended = block.norm1(embedded + block.self_attn(embedded, embedded, embedded, need_weights=False)[0])
    inner = relu(block.linear1(attended))
    output = network.norm(block.norm2(attended + block.linear2(inner)))
    expected = {"block.self_attn": embedded, "block.linear1": attended, "block.linear2": inner}
    expected = {name: h.flatten(0, 1) for name, h in expected.items()} | {"head": output.mean(1)}
    assert_seen(network, x, expected, device)


def test_a_recurrent_layer_and_a_convolution_over_a_line(device):
    network, x, _ = network_and_probe("recurrent")
    network, x = network.double(), x.double()
    line = network.line(x)
    expected = {"lstm": line.mT.flatten(0, 1), "head": network.lstm(line.mT)[0][:, -1]}
    assert_seen(network, x, expected, device)


def test_a_layer_that_runs_twice_has_the_rows_of_both(device):
    network, x, _ = network_and_probe("twice")
    one = torch.tanh(network.enter(x))
    two = torch.tanh(network.shared(one))
    found = seen(network.to(device), x)
    assert list(found) == ["shared", "first", "second", "frozen", "head"], "both layers of a tied weight"
    np.testing.assert_allclose(found["shared"], torch.cat([one, two]).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_what_is_overwritten_after_a_layer_has_seen_it(device):
    class Overwriting(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 5)

        def forward(self, x):
            h = self.first(x)
            return self.second(h) + h.zero_()

    network, x = Overwriting(), torch.randn(6, 4)
    assert_seen(network, x, {"second": network.first(x)}, device)


def test_several_inputs_by_place_or_by_name(device):
    class Critic(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(5, 4), nn.Linear(4, 1)

        def forward(self, state, action):
            return self.second(torch.relu(self.first(torch.cat([state, action], -1))))

    network, state, action = Critic(), torch.randn(6, 3), torch.randn(6, 2)
    expected = {"second": torch.relu(network.first(torch.cat([state, action], -1)))}
    assert_seen(network, (state, action), expected, device)
    assert_seen(network, {"action": action, "state": state}, expected, device)


@pytest.mark.parametrize(
    "part", [lambda z: z, lambda z: z.flatten(1), lambda z: z[:, 1:]], ids=["whole", "flat", "part"]
)
def test_the_input_of_a_second_branch_is_not_hidden(part, device):
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.h = nn.Linear(3, 5), nn.LazyLinear(5), nn.Linear(5, 2)

        def forward(self, x, z):
            return self.h(relu(self.a(x)) + relu(self.b(part(z))))

    network, x, z = Branches(), torch.randn(6, 3), torch.randn(6, 4)
    network(x, z)  # the lazy layer finds its size
    expected = {"h": relu(network.a(x)) + relu(network.b(part(z)))}
    assert_seen(network, (x, z), expected, device)
    assert_seen(network, {"z": z, "x": x}, expected, device)


def test_a_time_that_enters_behind_a_layer_is_not_a_unit(device):
    class Waves(nn.Module):
        """Embeds a time, one number an example."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, 5))

        def forward(self, time):
            return torch.sin(time[:, None] * self.weight.sum(0))

    class Timed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.waves, self.head = nn.Linear(3, 5), Waves(), nn.Linear(5, 2)

        def forward(self, x, time):
            return self.head(self.first(x) + self.waves(time / 10))

    network, x, time = Timed(), torch.randn(6, 3), torch.rand(6)
    expected = {"head": network.first(x) + network.waves(time / 10)}
    assert_seen(network, (x, time), expected, device)


def test_a_network_without_hidden_layers_has_nothing_to_show():
    inspection = Inspection(nn.Linear(3, 2), torch.randn(4, 3), previous={})
    assert inspection.activations == {}
    for name in ("dormant_units", "dead_units", "feature_rank", "representation_change"):
        assert DIAGNOSTICS[name](inspection) == {}


def test_a_parametrized_layer_is_given_what_a_plain_one_is(device):
    network, x = (
        nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)),
        torch.randn(6, 3),
    )
    expected = {name: torch.from_numpy(h) for name, h in seen(network, x).items()}
    assert list(expected) == ["2", "4"]
    for layer in network[::2]:
        nn.utils.parametrize.register_parametrization(layer, "weight", nn.Identity())
    assert_seen(network, x, expected, device)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_population_sees_what_its_members_see(name, device):
    population = Population(lambda: network_and_probe(name, seed=int(torch.randint(9, ())))[0], seeds=[0, 1, 2])
    population.to(device)
    x = torch.stack([network_and_probe(name, seed=seed)[1] for seed in range(3)])
    found = Inspection(population, x).activations
    for index in range(3):
        alone = Inspection(population.member(index), x[index]).activations
        assert list(alone) == list(found)
        assert all(torch.equal(found[layer][index], h) for layer, h in alone.items())


# What is said.


def naive_dormant(h, threshold):
    count = 0
    magnitude = [sum(abs(value) for value in unit) / len(unit) for unit in h.T]
    for size in magnitude:
        count += size / (sum(magnitude) / len(magnitude) + 1e-9) <= threshold
    return count


hidden = st.builds(
    lambda sizes, rows, sparsity, seed: {
        str(layer): (
            torch.randn(rows, units, generator=torch.Generator().manual_seed(seed + layer))
            * (torch.rand(units, generator=torch.Generator().manual_seed(seed - layer)) > sparsity)
            * torch.logspace(0, -3, units)
        ).double()
        for layer, units in enumerate(sizes)
    },
    st.lists(st.integers(1, 9), min_size=1, max_size=3),
    st.integers(1, 9),
    st.floats(0, 1),
    st.integers(10, 999),
)


@settings(max_examples=60)
@given(hidden, st.sampled_from([0.0, 0.025, 0.1, 0.5]))
def test_dormant_and_dead_units(device, h, threshold):
    arrays = {name: each.numpy() for name, each in h.items()}
    total = sum(each.shape[1] for each in arrays.values())
    dormant = {name: naive_dormant(each, threshold) for name, each in arrays.items()}
    dead = {name: int((each == 0).all(0).sum()) for name, each in arrays.items()}
    on_device = {name: each.to(device) for name, each in h.items()}
    for found, expected in ((dormant_units(on_device, threshold), dormant), (dead_units(on_device), dead)):
        assert found.keys() == {"", *h}
        assert found[""].item() == pytest.approx(sum(expected.values()) / total)
        for name, count in expected.items():
            assert found[name].item() == pytest.approx(count / arrays[name].shape[1])


def test_dormant_units_are_those_that_redo_recycles(device):
    network = nn.Sequential(nn.Conv2d(2, 9, 3), nn.ReLU(), nn.Conv2d(9, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 2))
    with torch.no_grad():
        network[0].bias[:4], network[2].bias[:2] = -9, -9
    network.to(device)
    x = torch.randn(5, 2, 6, 6).to(device)
    found = dormant_units(Inspection(network, x).activations)
    before = copy.deepcopy(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    ReDo(network, 0.1, every=1, seed=1).attach(optimizer)
    network(x).sum().backward()
    optimizer.step()
    shares = {}
    for enters, layer in (("2", 0), ("4", 2)):
        changed = (network[layer].weight != before[layer].weight).flatten(1)
        recycled = changed.sum(1) > changed.shape[1] // 2  # more than the inputs from recycled units
        shares[enters] = recycled.double().mean().item()
    assert 0 < shares["2"] < 1
    assert 0 < shares["4"] < 1
    assert {name: value.item() for name, value in found.items() if name} == pytest.approx(shares)


@settings(max_examples=60)
@given(st.integers(1, 20), st.integers(1, 20), st.floats(0, 3), st.integers(0, 999))
def test_feature_rank(device, rows, units, decay, seed):
    random = torch.Generator().manual_seed(seed)
    last = torch.randn(rows, units, generator=random, dtype=torch.float64) * torch.logspace(0, -decay, units)
    values = np.linalg.svd(last.numpy(), compute_uv=False)
    expected = next(k for k in range(1, len(values) + 1) if values[:k].sum() >= 0.99 * values.sum() * (1 - 1e-9))
    assert feature_rank({"first": torch.zeros(2, 2, device=device), "last": last.to(device)})[""].item() == expected


@pytest.mark.parametrize(("rank", "expected"), [(0, 0), (1, 1), (7, 7), (99, 99), (100, 99)])
def test_feature_rank_of_equal_singular_values(rank, expected, device):
    """99 of 100 equal ones are 99 % exactly."""
    features = torch.linalg.qr(torch.randn(120, 100).double())[0]
    features[:, rank:] = 0
    assert feature_rank({"last": features.to(device)})[""] == expected


def test_representation_change(device):
    then = {"a": torch.tensor([[3.0, 4.0]]), "b": torch.ones(2, 2)}
    now = {"a": torch.tensor([[3.0, 5.0]], device=device), "b": torch.ones(2, 2, device=device)}
    found = {name: change.item() for name, change in representation_change(now, then).items()}
    assert found == {"": pytest.approx(0.1), "a": pytest.approx(0.2), "b": 0}
    doubled = {name: 2 * h.to(device) for name, h in then.items()}
    assert representation_change(doubled, then)[""].item() == pytest.approx(1)
    large, large_then = ({name: 1e6 * h for name, h in activations.items()} for activations in (now, then))
    assert representation_change(large, large_then)[""].item() == pytest.approx(0.1), "it does not depend on scale"


def test_representation_change_of_a_layer_that_was_zero():
    zero, one = {"a": torch.zeros(2, 2)}, {"a": torch.ones(2, 2)}
    assert representation_change(zero, zero)[""] == 0
    assert representation_change(one, zero)[""] == math.inf
    assert representation_change(zero, one)[""] == 1


def test_representation_change_wants_the_same_probe():
    with pytest.raises(ValueError, match="the same probe"):
        representation_change({"a": torch.ones(2, 2)}, {"a": torch.ones(3, 2)})


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_what_is_not_finite_is_nan(wrong, device):
    h = {"a": torch.randn(2, 4, 3, device=device), "b": torch.randn(2, 4, 5, device=device)}
    then = {name: each.clone() for name, each in h.items()}
    h["a"][1, 2, 1] = wrong
    for found in (dormant_units(h), dead_units(h), representation_change(h, then)):
        assert found[""].isnan().tolist() == [False, math.isnan(found[""][1])]
        assert not found["b"].isnan().any()
    for found in (dormant_units(h), dead_units(h)):
        assert found["a"].isnan().tolist() == [False, True]
    assert feature_rank({"a": h["a"]})[""].isnan().tolist() == [False, True]


def test_half_precision_is_averaged_in_single(device):
    """In bfloat16 a sum of many stops growing."""
    h = torch.ones(100_000, 2, dtype=torch.bfloat16, device=device)
    h[:, 1] = 0.05
    assert dormant_units({"a": h})[""] == 0.5
    assert dormant_units({"a": h}, 0.0)[""] == 0


class TiedHead(nn.Module):
    """A language model's shape: tokens in, the output layer with the embedding's weights."""

    def __init__(self, tied):
        super().__init__()
        self.embed, self.hidden, self.head = nn.Embedding(7, 5), nn.Linear(5, 5), nn.Linear(5, 7, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(self.embed.weight)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(relu(self.hidden(self.embed(tokens))))


def test_a_tied_output_layer_is_given_the_last_hidden_activations():
    torch.manual_seed(0)
    networks = [TiedHead(tied=False), TiedHead(tied=True)]
    networks[1].load_state_dict(networks[0].state_dict())
    tokens = torch.randint(7, (6, 3))
    untied, tied = (Inspection(network, tokens) for network in networks)
    assert list(tied.activations) == list(untied.activations) == ["hidden", "head"]
    assert DIAGNOSTICS["feature_rank"](tied) == DIAGNOSTICS["feature_rank"](untied)


def test_inputs_that_a_second_branch_gets_in_a_tensor_of_its_own_are_not_hidden(device):
    class Twins(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = (nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 1)) for _ in range(2))

        def forward(self, seen, done):
            return self.one(torch.cat([seen, done], 1)) + self.two(torch.cat([seen, done], 1))

    network, x = Twins(), (torch.randn(4, 3), torch.randn(4, 3))
    both = torch.cat(x, 1)
    assert_seen(network, x, {"one.2": network.one[:2](both), "two.2": network.two[:2](both)}, device)


def test_a_padded_batch_of_torchs_encoder():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.enter, self.encoder = nn.Linear(4, 8), nn.TransformerEncoder(layer, 2)

        def forward(self, x, padding):
            return self.encoder(self.enter(x), src_key_padding_mask=padding)

    network, x = Encoder().eval(), (torch.randn(3, 5, 4), torch.arange(5) > torch.tensor([[4], [3], [2]]))
    found = Inspection(network, x).activations
    assert {name.rpartition(".")[2] for name in found} >= {"linear1", "linear2"}
    assert torch.backends.mha.get_fastpath_enabled()
