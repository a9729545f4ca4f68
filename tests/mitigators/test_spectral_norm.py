"""Spectral-norm regularization against σ₁² of a full SVD in float64."""

import pytest
import torch
from torch import nn

from oracles.regularizers import kind, matrices, owned, parameters64
from oracles.training import assert_follows, descended
from supple import SpectralNormRegularizer
from support.resting import resting
from support.zoo import ZOO, relative_error, spread

CONVERGED = 40
WITH_MATRICES = [name for name in ZOO if any(kind(m, n, p) == "matrix" for _, m, n, p in owned(ZOO[name]()))]


def oracle(network, parameters):
    """Σ over weight matrices of σ₁², and nothing of biases and gains."""
    total = torch.zeros((), dtype=torch.float64)
    for full_name, module, name, original in owned(network):
        if kind(module, name, original) == "matrix":
            for matrix in matrices(module, name, parameters[full_name]):
                total = total + torch.linalg.svdvals(matrix)[0] ** 2
    return total


@pytest.mark.parametrize("name", WITH_MATRICES)
def test_gradient_and_penalty_are_the_oracles(name):
    network = spread(ZOO[name]())
    regularizer = SpectralNormRegularizer(network, strength=0.3, power_iterations=CONVERGED)
    parameters = {name: value.requires_grad_() for name, value in parameters64(network).items()}
    expected = 0.3 * oracle(network, parameters)
    expected.backward()
    torch.testing.assert_close(regularizer.penalty().double(), expected.detach(), rtol=1e-5, atol=0)
    resting(network)
    regularizer.before_step()
    for name, module, short, parameter in owned(network):
        if kind(module, short, parameter) == "matrix":
            assert relative_error(parameter.grad, parameters[name].grad) <= 1e-5, name
        else:
            assert not parameter.grad.any(), name


def test_twenty_steps_are_the_oracles(small_network):
    network = spread(small_network())
    method = SpectralNormRegularizer(network, strength=0.1, power_iterations=CONVERGED)
    assert_follows(network, method, descended(lambda parameters: oracle(network, parameters), 0.1), rtol=1e-7)


def test_every_matrix_goes_to_zero_and_nothing_else():
    network = ZOO["mlp"]()
    others = {name: p.detach().clone() for name, m, short, p in owned(network) if kind(m, short, p) != "matrix"}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    SpectralNormRegularizer(network, strength=1.0).attach(optimizer)
    for _ in range(200):
        optimizer.zero_grad()
        resting(network)
        optimizer.step()
    for name, parameter in network.named_parameters():
        if name in others:
            assert torch.equal(others[name], parameter), name
        else:
            assert torch.linalg.matrix_norm(parameter.detach(), 2) < 1e-3, name


@pytest.mark.parametrize("override", ["matrix", None])
def test_roles_are_kept(override):
    network = resting(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)))
    SpectralNormRegularizer(network, roles={"0.weight": override}).before_step()
    assert network[0].weight.grad.any() == (override is not None)
    assert network[1].weight.grad.any()


def test_the_seed_determines_the_first_vectors():
    network = nn.Linear(40, 30)
    first, again, other = (SpectralNormRegularizer(network, seed=seed).state["weight"]["v"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_network_without_matrices_is_refused():
    with pytest.raises(ValueError, match="expected a network with parameters"):
        SpectralNormRegularizer(nn.LayerNorm(3))
