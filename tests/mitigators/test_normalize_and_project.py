"""Normalize-and-project against W ‖W⁽⁰⁾‖ / ‖W‖ written out, for each matrix by itself."""

import pytest
import torch
from torch import nn

from oracles.regularizers import kind, matrices, owned, parameters64
from oracles.training import LR, assert_follows
from supple import NormalizeAndProject
from support.resting import resting
from support.zoo import ZOO

WITH_MATRICES = [name for name in ZOO if any(kind(m, n, p) == "matrix" for _, m, n, p in owned(ZOO[name]()))]


def norms(network, parameters):
    return {
        full_name: [matrix.detach().double().norm() for matrix in matrices(module, name, parameters[full_name])]
        for full_name, module, name, original in owned(network)
        if kind(module, name, original) == "matrix"
    }


def projected(network, parameters, initial, strength=1.0):
    """Each matrix times 1 + strength · (‖W⁽⁰⁾‖ / ‖W‖ − 1), through autograd of Σ factor · ‖W‖² / 2."""
    result = dict(parameters)
    for full_name, module, name, _ in owned(network):
        if full_name in initial:
            weight = parameters[full_name].clone().requires_grad_()
            total = torch.zeros((), dtype=torch.float64)
            for matrix, goal in zip(matrices(module, name, weight), initial[full_name], strict=True):
                factor = 1 + strength * (goal / matrix.norm().item() - 1)
                total = total + factor * matrix.square().sum() / 2
            (result[full_name],) = torch.autograd.grad(total, weight)
    return result


@pytest.mark.parametrize("name", WITH_MATRICES)
@pytest.mark.parametrize("strength", [1.0, 0.3])
def test_each_matrix_goes_back_to_its_initial_norm(name, strength):
    network = ZOO[name]()
    initial = norms(network, parameters64(network))
    method = NormalizeAndProject(network, strength=strength)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))
    expected = projected(network, parameters64(network), initial, strength)
    method.after_step(torch.optim.SGD(resting(network).parameters()))
    for name, _, _, parameter in owned(network):
        torch.testing.assert_close(parameter.detach().double(), expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("strength", [1.0, 0.3])
def test_twenty_steps_are_the_oracles(strength, small_network):
    network = small_network()
    initial = norms(network, parameters64(network))

    def step(parameters, gradients, number):
        moved = {name: value - LR * gradients[name] for name, value in parameters.items()}
        return projected(network, moved, initial, strength)

    assert_follows(network, NormalizeAndProject(network, strength=strength), step, rtol=1e-6)


def test_the_norm_has_the_precision_of_the_weight():
    network = nn.Linear(40, 30).double()
    norm = network.weight.norm().item()
    method = NormalizeAndProject(network)
    nn.init.normal_(network.weight)
    method.after_step(torch.optim.SGD(resting(network).parameters()))
    assert network.weight.norm().item() == pytest.approx(norm, rel=1e-14)


@pytest.mark.parametrize("start", [0.0, 30.0])
def test_a_matrix_that_is_zero_stays_finite(start):
    network = nn.Linear(4, 3)
    nn.init.constant_(network.weight, start)
    method = NormalizeAndProject(network)
    nn.init.zeros_(network.weight)
    method.after_step(torch.optim.SGD(resting(network).parameters()))
    assert not network.weight.any()


def test_a_matrix_that_is_zero_at_first_is_free():
    """As LoRA's second one, or the last layer of a residual block: it has no norm to keep."""
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    nn.init.zeros_(network[1].weight)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    NormalizeAndProject(network).attach(optimizer)
    norm = network[0].weight.norm().item()
    for _ in range(3):
        optimizer.zero_grad()
        network(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    assert network[1].weight.norm() > 0.1
    assert network[0].weight.norm().item() == pytest.approx(norm)


def test_a_network_without_matrices_is_refused():
    with pytest.raises(ValueError, match=r"expected .*matri"):
        NormalizeAndProject(nn.LayerNorm(3))
