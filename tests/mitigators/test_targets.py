"""Targets other than 1: numbers, by name, ceilings, and the ceilings that a trained network brings with it."""

import copy
import math
import re

import pytest
import torch
from torch import nn

from oracles.regularizers import kind as kind_of
from oracles.regularizers import matrices, owned
from supple import Population, SpectralNormRegularizer, SpectralRegularizer
from supple.mitigators.states import GLOBAL
from support.resting import resting
from support.zoo import ZOO, relative_error, spread

CONVERGED = 60


def stretches(network, parameters):
    """(parameter's name, kind, each σ₁ by a full SVD, norm or gain), slow and obvious."""
    for full, module, name, original in owned(network):
        kind, value = kind_of(module, name, original), parameters[full]
        if kind == "matrix":
            yield full, kind, [torch.linalg.svdvals(m)[0] for m in matrices(module, name, value)]
        elif kind == "vector":
            yield full, kind, [value.norm()]
        elif kind == "scale":
            yield full, kind, list(value.flatten())


@pytest.fixture
def in_bfloat16_by_default():
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_default_dtype(usual)


def test_a_target_is_not_rounded_to_the_default_type(in_bfloat16_by_default):
    network = nn.Linear(8, 8, bias=False, dtype=torch.float32)
    optimizer = torch.optim.SGD(resting(network).parameters(), lr=0.1)
    SpectralRegularizer(network, 1.0, target=0.7, decoupled=True, power_iterations=20).attach(optimizer)
    for _ in range(100):
        network.zero_grad()
        resting(network)
        optimizer.step()
    assert torch.linalg.matrix_norm(network.weight.detach(), 2).item() == pytest.approx(0.7, abs=1e-5)


def term(stretch, target, k, one_sided):
    """τ²((s/τ)ᵏ − 1)², and s²ᵏ for τ = 0."""
    if one_sided and abs(stretch) <= target:
        return 0 * stretch
    stretch = abs(stretch) if one_sided else stretch
    return target**2 * ((stretch / target) ** k - 1) ** 2 if target else stretch ** (2 * k)


def ceilings(network):
    """max(what it is now, 1), vectors: what they are."""
    now = {name: p.detach().double() for name, p in network.named_parameters()}
    return {
        full: [max(abs(float(s)), 0.0 if kind == "vector" else 1.0) for s in values]
        for full, kind, values in stretches(network, now)
    }


def penalty(network, targets, k=2, one_sided=False, parameters=None):
    parameters = parameters or {name: p.detach().double() for name, p in network.named_parameters()}
    return sum(
        (
            term(stretch, target, k, one_sided)
            for full, _, values in stretches(network, parameters)
            for stretch, target in zip(values, targets[full], strict=True)
        ),
        torch.zeros((), dtype=torch.float64),
    )


def gradients(network, targets, k=2, one_sided=False):
    parameters = {name: p.detach().double().requires_grad_() for name, p in network.named_parameters()}
    penalty(network, targets, k, one_sided, parameters).backward()
    return {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in parameters.items()}


def grow(network, factor=1.3):
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(factor)
    return network


def named_targets(network, named):
    usual = {full: (0.0 if kind == "vector" else 1.0, len(v)) for full, kind, v in stretches(network, tensors(network))}
    return {full: [named.get(full, target)] * count for full, (target, count) in usual.items()}


def tensors(network):
    return {name: p.detach().double() for name, p in network.named_parameters()}


SOME = ["conv2d-grouped", "attention", "lstm", "layer-norm", "mlp", "embedding", "conv-transpose2d-grouped"]


@pytest.mark.parametrize("exponent", [1, 2, 3])
@pytest.mark.parametrize("name", SOME)
def test_ceilings_are_the_oracles(name, exponent):
    network = spread(ZOO[name](), sigma=1.7)
    with torch.no_grad():
        for _, module, short, parameter in owned(network):
            if kind_of(module, short, parameter) == "scale":
                parameter.flatten()[:2] *= -1  # a gain of −1.3 has the ceiling 1.3 as well
    targets = ceilings(network)
    regularizer = SpectralRegularizer(network, 1.0, target="initial", exponent=exponent, power_iterations=CONVERGED)
    assert regularizer.penalty().item() == pytest.approx(0, abs=1e-9), "nothing is above its ceiling yet"
    resting(network)
    regularizer.before_step()
    assert all(p.grad.abs().max() < 1e-4 for p in network.parameters())
    network.zero_grad()
    grow(network)
    expected = gradients(network, targets, exponent, one_sided=True)
    assert regularizer.penalty().item() == pytest.approx(penalty(network, targets, exponent, True).item(), rel=1e-4)
    resting(network)
    regularizer.before_step()
    for full, parameter in network.named_parameters():
        assert relative_error(parameter.grad, expected[full]) <= 1e-4, full


@pytest.mark.parametrize("one_sided", [False, True])
@pytest.mark.parametrize("exponent", [1, 2, 3])
def test_targets_by_name_are_the_oracles(exponent, one_sided):
    network = spread(ZOO["mlp"]())
    named = {"0.weight": 2.5, "3.bias": 0.4, "1.weight": 0.0, "3.weight": 0.5}
    targets = named_targets(network, named)
    regularizer = SpectralRegularizer(
        resting(network), 1.0, target=named, one_sided=one_sided, exponent=exponent, power_iterations=CONVERGED
    )
    expected = gradients(network, targets, exponent, one_sided)
    total = penalty(network, targets, exponent, one_sided).item()
    assert regularizer.penalty().item() == pytest.approx(total, rel=1e-5)
    regularizer.before_step()
    for full, parameter in network.named_parameters():
        assert (parameter.grad - expected[full]).norm() <= 1e-5 * max(1, expected[full].norm()), full
    assert parameter_of(network, "0.weight").grad.any() != one_sided, "1.7 is below 2.5"


def parameter_of(network, name):
    return dict(network.named_parameters())[name]


@pytest.mark.parametrize("target", [0.5, 1.0, 3.0, 20.0])
def test_the_pull_near_any_target_is_as_stiff(target):
    network = nn.Linear(4, 4, bias=False)
    slopes = []
    for sigma in (1.01 * target, 1.02 * target):
        nn.init.orthogonal_(network.weight, sigma)
        network.weight.grad = None
        SpectralRegularizer(resting(network), 1.0, target=target, power_iterations=CONVERGED).before_step()
        slopes.append(torch.linalg.matrix_norm(network.weight.grad, 2).item())
    assert (slopes[1] - slopes[0]) / (0.01 * target) == pytest.approx(2 * 2**2, rel=0.06)


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("target", [1.0, {"0.weight": 1.5}, "initial"])
def test_members_of_a_population_are_lone_networks(target, decoupled):
    def make():
        return grow(spread(nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3))).double(), 1.1)

    population = Population(make, [3, 4])
    members = [population.member(index) for index in range(2)]
    options = {"target": target, "decoupled": decoupled, "one_sided": True}
    stacked = SpectralRegularizer(population, torch.tensor([0.5, 2.0]).double(), **options)
    alone = [SpectralRegularizer(m, s, **options) for m, s in zip(members, (0.5, 2.0), strict=True)]
    for network in (population, *members):
        grow(network)
    optimizer = torch.optim.SGD(resting(population).parameters(), lr=0.01)
    stacked.attach(optimizer)
    penalties = stacked.penalty()
    optimizer.step()
    for index, (member, method) in enumerate(zip(members, alone, strict=True)):
        assert method.penalty().item() == pytest.approx(penalties[index].item(), rel=1e-9)
        its = torch.optim.SGD(resting(member).parameters(), lr=0.01)
        method.attach(its)
        its.step()
        for a, b in zip(member.parameters(), population.stacked.parameters(), strict=True):
            torch.testing.assert_close(a, b[index], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("decoupled", [False, True])
def test_nothing_ends_above_its_ceiling_and_what_is_below_is_free(decoupled):
    network = spread(ZOO["mlp"](), sigma=4.0)
    method = SpectralRegularizer(network, 1.0, target="initial", decoupled=decoupled)
    before, targets = copy.deepcopy(network), ceilings(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02)
    method.attach(optimizer)
    for _ in range(200):
        resting(network)
        optimizer.step()
    assert all(
        (a - b).norm() <= 1e-4 * b.norm() for a, b in zip(network.parameters(), before.parameters(), strict=True)
    )
    grow(network, 1.5)
    for _ in range(400):
        resting(network)
        optimizer.step()
        optimizer.zero_grad()
    for full, _, values in stretches(network, tensors(network)):
        assert all(abs(s) <= 1.001 * t + 1e-4 for s, t in zip(values, targets[full], strict=True)), full


def test_what_starts_at_zero_may_grow_to_one():
    """As the second factor of LoRA does."""
    layer = nn.Linear(4, 4, bias=False)
    nn.init.zeros_(layer.weight)
    method = SpectralRegularizer(layer, 1.0, target="initial", power_iterations=CONVERGED)
    for sigma, is_pulled in ((0.9, False), (1.1, True)):
        nn.init.orthogonal_(layer.weight, sigma)
        layer.weight.grad = None
        method_gradient(method, layer)
        assert bool(layer.weight.grad.any()) == is_pulled


def method_gradient(method, network):
    resting(network)
    method.before_step()


# The state.


def test_ceilings_travel_with_the_state():
    network = spread(ZOO["mlp"](), sigma=3.0)
    method = SpectralRegularizer(network, target="initial")
    state = method.state_dict()
    assert state["0.weight"]["target"].item() == pytest.approx(3.0, rel=1e-5)
    grown = SpectralRegularizer(grow(copy.deepcopy(network), 2.0), target="initial")
    assert grown.state["0.weight"]["target"].item() == pytest.approx(6.0, rel=1e-5)
    grown.load_state_dict(state)
    for name, entry in state.items():
        if "target" in entry and name != GLOBAL:
            assert torch.equal(grown.state[name]["target"], entry["target"])


VARIANTS = [
    {},
    {"target": 2.0},
    {"target": "initial"},
    {"target": {"0.weight": 2.0}},
    {"target": {"0.weight": 3.0}},
    {"target": {"3.weight": 2.0}},
    {"exponent": 3},
    {"decoupled": True},
    {"one_sided": True},
    {"one_sided": True, "target": {"0.weight": 2.0}},
]


@pytest.mark.parametrize("theirs", range(len(VARIANTS)))
@pytest.mark.parametrize("mine", range(len(VARIANTS)))
def test_a_state_of_other_options_is_refused_and_changes_nothing(mine, theirs):
    method, other = (SpectralRegularizer(ZOO["mlp"](), 0.1, **VARIANTS[index]) for index in (mine, theirs))
    before = method.state_dict()
    if mine == theirs:
        method.load_state_dict(other.state_dict())
        return
    with pytest.raises(ValueError, match=r"expected (a|the) state"):
        method.load_state_dict(other.state_dict())
    after = method.state_dict()
    assert all(torch.equal(before[name][key], after[name][key]) for name in before for key in before[name])


def test_the_option_that_differs_is_named():
    with pytest.raises(ValueError, match="with exponent 2, got one with exponent 4"):
        SpectralRegularizer(nn.Linear(3, 2)).load_state_dict(
            SpectralRegularizer(nn.Linear(3, 2), exponent=4).state_dict()
        )


def test_another_kind_of_target_is_named():
    state = SpectralRegularizer(nn.Linear(3, 2)).state_dict()
    with pytest.raises(ValueError, match="with target 'initial', got one with target 1"):
        SpectralRegularizer(nn.Linear(3, 2), target="initial").load_state_dict(state)


# What is shown, and what is refused.


def rows(table):
    header, *lines = (re.split(r"\s{2,}", line.strip()) for line in table.splitlines())
    return {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in lines}


def test_describe_has_a_column_of_targets():
    network = spread(nn.Sequential(nn.MultiheadAttention(4, 2), nn.LayerNorm(4)))
    with torch.no_grad():
        network[0].in_proj_weight[:4] *= 2

    def column(**options):
        return {n: row["target"] for n, row in rows(SpectralRegularizer(network, **options).describe()).items()}

    usual = column()
    assert (usual["0.in_proj_weight"], usual["0.in_proj_bias"], usual["1.weight"]) == ("1.000", "0.000", "1.000")
    assert column(target={"0.out_proj.weight": 2.0})["0.out_proj.weight"] == "2.000"
    initial = column(target="initial")
    assert initial["0.in_proj_weight"] == "1.700 to 3.400"
    assert float(initial["1.bias"]) == pytest.approx(network[1].bias.norm().item(), abs=1e-3)
    left_out = SpectralRegularizer(network, target="initial", roles={"1.bias": None})
    assert rows(left_out.describe())["1.bias"]["target"] == "-"


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ("inital", ValueError, "did you mean 'initial'"),
        ({"weigth": 1.0}, ValueError, "did you mean 'weight'"),
        ({"weight": -1.0}, ValueError, r"target for 'weight' of at least 0, got -1"),
        ({"weight": math.nan}, ValueError, r"target for 'weight'"),
        ({"weight": "large"}, TypeError, r"a number, a mapping or 'initial' as target for 'weight'"),
        (None, TypeError, "expected a number, a mapping or 'initial' as target"),
    ],
    ids=str,
)
def test_bad_targets_are_named(target, error, message):
    with pytest.raises(error, match=message):
        SpectralRegularizer(nn.Linear(2, 2), target=target)


def test_a_target_of_what_is_left_out_is_refused():
    with pytest.raises(ValueError, match="parameter that is regularized, got 'bias'"):
        SpectralRegularizer(nn.Linear(2, 2), target={"bias": 1.0}, roles={"bias": None})


def test_ceilings_are_exact_under_autocast_and_where_two_singular_values_are_close():
    torch.manual_seed(1)
    network = nn.Linear(200, 200, bias=False)  # whose power iteration converges slowly
    exact = torch.linalg.svdvals(network.weight.detach().double())[0].item()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        network.weight.mul_(3)
        method = SpectralRegularizer(network, target="initial")
        assert method.state["weight"]["target"].item() == pytest.approx(3 * exact, rel=1e-5)
        assert f"{3 * exact:.3f}" in method.describe()


def test_the_spectral_norm_penalty_is_still_that_of_zero():
    network = spread(nn.Linear(4, 3), sigma=2.0)
    assert SpectralNormRegularizer(network, 1.0, power_iterations=CONVERGED).penalty().item() == pytest.approx(
        4.0, rel=1e-5
    )
