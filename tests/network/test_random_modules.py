"""Any module at all: the spectral penalty and its gradient are those of the paper, by another way, in float64."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from oracles.regularizers import owned, parameters64, spectral_gradients, spectral_penalty
from supple import Population, SpectralRegularizer
from support.resting import resting
from support.zoo import ZOO, relative_error, spread

CONVERGED = 60
PRECISION = {torch.float64: 1e-6, torch.float32: 2e-5, torch.bfloat16: 1e-2}
"""Of a gradient stored in that type. The trace of a fixed direction in each iteration bends v by some 1e-7."""

trees = st.recursive(
    st.sampled_from(sorted(ZOO)), lambda inside: st.lists(inside, min_size=1, max_size=3), max_leaves=5
)
sharing = st.sampled_from(["nothing", "module", "parameters"])


def built(tree: str | list, shared: str) -> nn.Module:
    """The modules that a tree names, nested like it; ``shared``: one of them, or what it holds, is there twice."""
    network = nn.ModuleList([part(tree)])
    leaf = next(module for module in network.modules() if list(module.parameters(recurse=False)))
    if shared == "module":
        network.append(nn.Sequential(leaf))
    elif shared == "parameters":
        network.append(nn.ParameterList(leaf.parameters(recurse=False)))
    return spread(network)


def part(tree: str | list) -> nn.Module:
    return ZOO[tree]() if isinstance(tree, str) else nn.Sequential(*map(part, tree))


def gradients(network: nn.Module, regularizer: SpectralRegularizer) -> dict[str, torch.Tensor]:
    resting(network)
    regularizer.before_step()
    module = network.stacked if isinstance(network, Population) else network
    return {name: parameter.grad for name, _, _, parameter in owned(module)}


options = {
    "tree": trees,
    "shared": sharing,
    "dtype": st.sampled_from(list(PRECISION)),
    "exponent": st.integers(1, 3),
    "target": st.sampled_from([0.0, 0.5, 1.0]),
    "seed": st.integers(0, 2**32),
}


@settings(max_examples=30)
@given(**options)
def test_penalty_and_gradient_of_a_network(tree, shared, dtype, exponent, target, seed):
    torch.manual_seed(seed)
    network = built(tree, shared).to(dtype)
    regularizer = SpectralRegularizer(network, 1.0, exponent=exponent, target=target, power_iterations=CONVERGED)
    expected = spectral_penalty(network, parameters64(network), exponent, target)
    with torch.no_grad():
        assert relative_error(regularizer.penalty(), expected) <= max(1e-2 * PRECISION[dtype], 1e-5)
    wanted = spectral_gradients(network, exponent, target)
    added = gradients(network, regularizer)
    assert added.keys() == wanted.keys()
    largest = max(gradient.norm() for gradient in wanted.values())
    for name, gradient in wanted.items():
        error = (added[name].double() - gradient).norm()
        assert error <= PRECISION[dtype] * gradient.norm() + 1e-3 * PRECISION[dtype] * largest, name


@settings(max_examples=15)
@given(**{name: options[name] for name in ("tree", "shared", "exponent", "target", "seed")})
def test_the_gradient_is_a_finite_difference(tree, shared, exponent, target, seed):
    """Of the oracle's penalty along a random direction."""
    torch.manual_seed(seed)
    network = built(tree, shared).double()
    regularizer = SpectralRegularizer(network, 1.0, exponent=exponent, target=target, power_iterations=CONVERGED)
    added, here, width = gradients(network, regularizer), parameters64(network), 1e-5
    direction = {name: torch.randn_like(parameter) for name, parameter in here.items()}
    there = [
        spectral_penalty(
            network, {name: here[name] + sign * width * direction[name] for name in here}, exponent, target
        )
        for sign in (1, -1)
    ]
    slope = sum((added[name] * direction[name]).sum() for name in here)
    size = sum((added[name] * direction[name]).abs().sum() for name in here)
    assert abs((there[0] - there[1]) / (2 * width) - slope) <= 1e-5 * size + 1e-6


@settings(max_examples=15)
@given(**options, members=st.integers(1, 3))
def test_penalty_and_gradient_of_a_population(tree, shared, dtype, exponent, target, seed, members):
    seeds = [(seed + member) % 2**32 for member in range(members)]
    population = Population(lambda: built(tree, shared).to(dtype), seeds)
    strengths = torch.linspace(0.5, 2.0, members)
    regularizer = SpectralRegularizer(
        population, strengths, exponent=exponent, target=target, power_iterations=CONVERGED
    )
    with torch.no_grad():
        penalties = regularizer.penalty()
    added = gradients(population, regularizer)
    for index, strength in enumerate(strengths.tolist()):
        member = population.member(index)
        expected = strength * spectral_penalty(member, parameters64(member), exponent, target)
        assert relative_error(penalties[index], expected) <= max(1e-2 * PRECISION[dtype], 1e-5)
        wanted = spectral_gradients(member, exponent, target)
        largest = max(gradient.norm() for gradient in wanted.values())
        for name, gradient in wanted.items():
            error = (added[name][index].double() - strength * gradient).norm()
            assert error <= strength * PRECISION[dtype] * (gradient.norm() + 1e-3 * largest), name
