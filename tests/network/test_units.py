"""Which units a network has, where they lead, and that a reset reaches exactly their numbers."""

import copy

import pytest
import torch
from torch import nn

from supple import Population
from supple.network.units import check_moments, find_units, reset_units
from support.keepers import CONTAINERS, Keeper


def found(network, units=None):
    groups, skipped = find_units(network, units)
    pairs = {group.name: tuple(consumer.path for consumer in group.leaving) for group in groups}
    return pairs, {entry.layer: entry.reason for entry in skipped}


def parts(network):
    return {group.name: [part.name for part in group.entering] for group in find_units(network)[0]}


class Functional(nn.Module):
    """A convolutional network as people write them, with a shape-dependent flattening and an optional argument."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 6, 3)
        self.fc1, self.fc2, self.value = nn.Linear(6 * 4, 5), nn.Linear(5, 3), nn.Linear(5, 1)

    def forward(self, x, mask=None):
        if mask is not None:
            x = x * mask
        x = nn.functional.max_pool2d(nn.functional.relu(self.norm(self.conv1(x))), 2)
        x = torch.relu_(self.conv2(x))
        x = nn.functional.dropout(x.view(x.size(0), -1), 0.1, self.training)
        x = 0.5 * self.fc1(x) ** 2
        return self.fc2(x), self.value(x)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Linear(3, 8), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.up, self.down, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 2)

    def forward(self, x):
        x = self.embed(x)
        h = self.norm(x)
        x = x + self.attention(h, h, h)[0]
        x = x + self.down(nn.functional.gelu(self.up(self.norm(x))))
        return self.head(x.mean(1))


def of(forward, **layers):
    """A network with these layers and this forward pass."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            for name, layer in layers.items():
                setattr(self, name, layer)

        def forward(self, x):
            return forward(self, x)

    return Network()


def test_a_convolutional_network():
    pairs, skipped = found(Functional())
    assert pairs == {"conv1": ("conv2",), "conv2": ("fc1",), "fc1": ("fc2", "value")}
    assert skipped == {"fc2": "reaches the network's output", "value": "reaches the network's output"}
    assert parts(Functional())["conv1"] == [
        *("conv1.weight", "conv1.bias", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var")
    ]


def test_a_transformer_block():
    pairs, skipped = found(Residual())
    assert pairs == {"up": ("down",)}
    assert {"embed", "attention", "attention.out_proj", "down", "head"} == skipped.keys()
    assert "combined with others" in skipped["down"]


@pytest.mark.parametrize("wrapped", [False, True])
def test_torchs_own_transformer(wrapped):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    network = nn.Sequential(nn.TransformerEncoder(layer, 2), nn.Linear(8, 2)) if wrapped else layer
    pairs, _ = found(network)
    names = ["0.layers.0.", "0.layers.1."] if wrapped else [""]
    assert pairs == {f"{name}linear1": (f"{name}linear2",) for name in names}


LINEAR = {"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "c": nn.Linear(4, 2)}
CONV = {"a": nn.Conv2d(1, 4, 3), "b": nn.Conv2d(4, 4, 3, groups=2), "c": nn.Linear(16, 2)}
STOPS = {
    "residual": (lambda m, x: m.c(m.a(x) + m.b(x)), LINEAR, {}),
    "residual of its own input": (lambda m, x: m.c((h := m.a(x)) + m.b(h.relu())), LINEAR, {}),
    "concatenation": (lambda m, x: m.b(torch.cat([m.a(x)[:, :2], x[:, :2]], 1)), LINEAR, {}),
    "gates": (lambda m, x: m.c(m.a(x).sigmoid() * m.b(x)), LINEAR, {}),
    "softmax": (lambda m, x: m.c(m.a(x).softmax(-1)), LINEAR, {}),
    "called twice": (lambda m, x: m.c(m.a(m.a(x).relu()).relu()), LINEAR, {}),
    "leaves by a layer called twice": (lambda m, x: m.c(m.b(m.b(m.a(x).relu()))), LINEAR, {}),
    "weight read": (lambda m, x: m.c(nn.functional.linear(m.a(x), m.a.weight)), LINEAR, {}),
    "different activations": (lambda m, x: m.c((h := m.a(x)).relu()) + m.b(h)[:, :2], LINEAR, {}),
    "places mixed": (lambda m, x: m.c(m.a(x).transpose(1, 2)), LINEAR, {}),
    "pooled over units": (lambda m, x: m.c(nn.functional.avg_pool1d(m.a(x), 1)), LINEAR, {}),
    "grouped": (lambda m, x: m.c(m.b(m.a(x)).mean((2, 3)).repeat(1, 4)), CONV, {}),
    "hidden in the output": (lambda m, x: (m.b(h := m.a(x).relu()), h), LINEAR, {}),
}


@pytest.mark.parametrize("case", STOPS)
def test_it_stops_where_units_are_shared(case):
    forward, layers, expected = STOPS[case]
    pairs, skipped = found(of(forward, **copy.deepcopy(layers)))
    assert pairs == expected
    assert "a" in skipped


def test_tied_frozen_and_computed_weights_are_left_alone():
    tied = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    tied[1].weight = tied[0].weight
    frozen = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    frozen[1].requires_grad_(False)
    computed = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    nn.utils.parametrizations.spectral_norm(computed[1])
    for network, reason in ((tied, "twice"), (frozen, "frozen"), (computed, "computes")):
        pairs, skipped = found(network)
        assert pairs == {}
        assert reason in skipped["0"]
        assert reason in skipped["1"]


def test_depthwise_convolutions_and_global_pooling():
    network = of(
        lambda m, x: m.c(m.b(m.a(x).relu()).relu().mean([-2, -1])),
        a=nn.Conv2d(1, 4, 3),
        b=nn.Conv2d(4, 6, 3, padding=1),
        c=nn.Linear(6, 2),
    )
    assert found(network)[0] == {"a": ("b",), "b": ("c",)}


def test_a_population_and_a_compiled_network_have_the_same_units():
    expected = found(Functional())[0]
    assert found(Population(Functional, [0, 1]))[0] == expected
    compiled = torch.compile(Functional(), backend="eager")
    assert found(compiled)[0] == {
        f"_orig_mod.{name}": tuple(f"_orig_mod.{to}" for to in consumers) for name, consumers in expected.items()
    }


def test_a_graph_of_torch_fx_has_the_units_of_its_network():
    network = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    graph = torch.fx.symbolic_trace(network)
    assert found(graph) == found(network)
    assert found(nn.Sequential(graph)) == ({"0.0": ("0.2",)}, {"0.2": "reaches the network's output"})


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_network_that_keeps_activations_is_traced_after_a_forward_pass(container):
    network = Keeper(container)
    network(torch.randn(5, 6))
    kept = network.kept
    assert found(network)[0] == {"a": ("b",)}
    assert network.kept is kept


def test_looking_leaves_the_network_alone():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 3), nn.Linear(3, 2)
            self.register_buffer("calls", torch.zeros(()))
            self.last = None

        def forward(self, x):
            self.calls += 1
            self.last = self.a(x)
            return self.b(self.last)

    network = Counting()
    seen = []
    network.a.register_forward_hook(lambda *_: seen.append(1))
    assert found(network)[0] == {"a": ("b",)}
    assert network.calls == 0
    assert network.last is None
    assert not seen


class Untraceable(nn.Sequential):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


def test_a_network_that_cannot_be_traced_says_what_to_do():
    network = Untraceable(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"torch.fx can trace, got Untraceable.*units=\["):
        find_units(network)
    groups, _ = find_units(network, units=[("0", "1", "3")])
    assert [part.name for part in groups[0].parts] == [
        *("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "3.weight")
    ]


class Opaque(nn.Module):
    """Cannot be traced, and is known for that only when it has called a layer."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        x = self.inner(x)
        return x if x.sum() > 0 else -x


def test_a_part_that_cannot_be_traced_is_left_alone_and_its_neighbours_are_not():
    deep = nn.Sequential(nn.Linear(4, 4), nn.Sequential(Opaque(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))))
    network = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), deep, nn.Linear(4, 5), Opaque(nn.ReLU()), nn.Linear(5, 3))
    network = nn.Sequential(network, nn.Linear(3, 4), nn.Linear(4, 1))
    groups, skipped = found(network)
    assert groups == {"0.0": ("0.2.0",), "0.5": ("1",), "1": ("2",)}
    assert {name for name, reason in skipped.items() if "may be mixed by Opaque" in reason} == {"0.2.0", "0.3"}
    assert {name for name, reason in skipped.items() if "torch.fx" in reason} == {f"0.2.1.0.inner.{i}" for i in (0, 1)}


def test_a_layer_that_is_also_used_where_nothing_can_be_traced_is_left_alone():
    a, b, c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
    assert found(nn.Sequential(a, nn.ReLU(), b, Opaque(c)))[0] == {"0": ("2",)}
    groups, skipped = found(nn.Sequential(a, nn.ReLU(), b, Opaque(b)))
    assert groups == {}
    assert "torch.fx" in skipped["0"]


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ([("conv1", "conv3")], "did you mean 'conv2'"),
        ([("conv1", "norm")], "expected a linear layer or a convolution, got BatchNorm2d as 'norm'"),
        ([("conv1", "fc2")], "to receive the 4 units"),
        ([("conv2", "norm", "fc1")], "expected norms of 6 units"),
        ([("conv1",)], "entering layer"),
        (["conv1"], "entering layer"),
    ],
)
def test_units_that_do_not_fit_are_refused(units, message):
    with pytest.raises(ValueError, match=message):
        find_units(Functional(), units)


# Resets.


def reset_by_hand(layer, norm, following, unit, places, fresh):
    """One unit of one network, entry by entry."""
    layer.weight[unit], layer.bias[unit] = fresh, 0
    if norm is not None:
        norm.weight[unit], norm.bias[unit], norm.running_mean[unit], norm.running_var[unit] = 1, 0, 0, 1
    for column in range(unit * places, (unit + 1) * places):
        following.weight[:, column] = 0


@torch.no_grad()
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("members", [None, 3])
def test_a_reset_writes_through_to_exactly_the_units_entries(members, channels_last):
    """A write to ``weight[:, mask]`` changes a copy: published versions reset nothing so."""

    def make():
        network = Functional()
        for tensor in [*network.parameters(), network.norm.running_mean, network.norm.running_var]:
            tensor.detach().normal_().add_(5)
        return network.to(memory_format=torch.channels_last) if channels_last else network

    network = make() if members is None else Population(make, range(members))
    module = network if members is None else network.stacked
    lone = [copy.deepcopy(network)] if members is None else [network.member(index) for index in range(members)]
    tensors = dict([*module.named_parameters(), *module.named_buffers()])
    storage = {name: tensor.data_ptr() for name, tensor in tensors.items()}
    moments = {
        name: {"exp_avg": torch.randn_like(parameter) + 9, "step": torch.tensor(7.0)}
        for name, parameter in module.named_parameters()
    }
    before = copy.deepcopy(moments)
    groups = {group.name: group for group in find_units(network)[0]}
    for name, places in {"conv1": 1, "conv2": 4, "fc1": 1}.items():
        group = groups[name]
        leading = () if members is None else (members,)
        which = torch.stack([torch.randperm(group.size)[:3] for _ in lone]).view(*leading, 3)
        chosen = torch.stack([torch.tensor([True, False, True]).roll(i) for i in range(len(lone))]).view(*leading, 3)
        weight = tensors[f"{name}.weight"]
        fresh = torch.randn(*leading, 3, *weight.shape[len(leading) + 1 :])
        old = {part.name: tensors[part.name].clone() for part in group.parts}
        reset_units(group, group.entering, tensors, moments, which, chosen, fresh)
        reset_units(group, [to.weight for to in group.leaving], tensors, moments, which, chosen)
        for index, alone in enumerate(lone):
            at = (lambda t: t) if members is None else (lambda t, index=index: t[index])
            for unit, replace, new in zip(at(which), at(chosen), at(fresh), strict=True):
                if replace:
                    for to in group.leaving:
                        norm = alone.norm if name == "conv1" else None
                        layers = getattr(alone, name), norm, getattr(alone, to.path)
                        reset_by_hand(*layers, int(unit), places, new)
            for key, value in [*alone.named_parameters(), *alone.named_buffers()]:
                assert torch.equal(at(tensors[key]), value), key
                if (
                    key in old and key in moments
                ):  # all new values differ from the old ones, so these are the entries touched
                    touched = at(old[key]) != value
                    expected = torch.where(touched, 0.0, at(before[key]["exp_avg"]))
                    assert torch.equal(at(moments[key]["exp_avg"]), expected), key
        before = copy.deepcopy(moments)
    assert all(tensor.data_ptr() == storage[name] for name, tensor in tensors.items())
    assert all(entry["step"] == 7 for entry in moments.values())


def test_an_unknown_optimizer_state_is_named():
    weight = torch.zeros(3, 2)
    known = {"weight": {"exp_avg": torch.zeros(3, 2), "step": torch.zeros(())}}
    check_moments(known, {"weight": weight})
    for state in ({"row_var": torch.zeros(3, 1)}, {"z": torch.zeros(3, 2)}, {"exp_avg": torch.zeros(6)}):
        with pytest.raises(ValueError, match=f"{next(iter(state))!r} of shape .* for 'weight'"):
            check_moments({"weight": state}, {"weight": weight})


def test_units_are_those_of_the_network_in_training_also_if_it_is_built_in_evaluation():
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.aux = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x):
            h = self.a(x).relu()
            return (self.b(h), self.aux(h)) if self.training else self.b(h)

    network = Auxiliary().eval()
    assert found(network)[0] == {"a": ("b", "aux")}
    assert not any(module.training for module in network.modules())
