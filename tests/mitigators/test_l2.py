"""L2 regularization against autograd on its formula in float64."""

import copy

import pytest
import torch
from torch import nn

from oracles.regularizers import owned, parameters64
from oracles.training import assert_follows, descended
from supple import L2InitRegularizer, L2Regularizer
from support.resting import resting
from support.zoo import ZOO, Custom, Tied, relative_error

METHODS = [L2Regularizer, L2InitRegularizer]


def oracle(network, initial, strength):
    """λ‖θ − θ⁽⁰⁾‖², and its gradient; θ⁽⁰⁾ = 0 for plain L2."""
    parameters = {name: value.requires_grad_() for name, value in parameters64(network).items()}
    total = strength * sum(((value - initial[name]) ** 2).sum() for name, value in parameters.items())
    total.backward()
    return total.detach(), {name: value.grad for name, value in parameters.items()}


@pytest.fixture(params=ZOO)
def network(request):
    return ZOO[request.param]()


def moved(network):
    """With gradients of zero."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))
    return resting(network)


@pytest.mark.parametrize("method", METHODS)
def test_gradient_and_penalty_are_the_oracles(method, network):
    regularizer = method(network, strength=0.3)
    zero = {name: torch.zeros_like(value) for name, value in parameters64(network).items()}
    initial = parameters64(network) if method is L2InitRegularizer else zero
    moved(network)
    penalty, gradients = oracle(network, initial, 0.3)
    torch.testing.assert_close(regularizer.penalty().double(), penalty, rtol=1e-5, atol=0)
    regularizer.before_step()
    for name, _, _, parameter in owned(network):
        assert relative_error(parameter.grad, gradients[name]) <= 1e-6, name
    closed = {name: parameter.grad for name, parameter in network.named_parameters()}
    network.zero_grad()
    regularizer.penalty().backward()
    for name, parameter in network.named_parameters():
        assert relative_error(parameter.grad, closed[name]) <= 1e-6, name


@pytest.mark.parametrize("method", METHODS)
def test_every_parameter_counts(method):
    """No term is lost, such as all but the last."""
    network = Custom()
    regularizer = method(network, strength=1.0)
    moved(network)
    regularizer.before_step()
    assert all(parameter.grad.abs().min() > 0 for parameter in network.parameters())


def test_the_initial_values_are_those_before_the_first_step():
    network = nn.Linear(3, 2)
    start = copy.deepcopy(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.25)
    L2InitRegularizer(network, strength=1.0).attach(optimizer)
    moved(network)
    for _ in range(60):
        optimizer.zero_grad()
        resting(network)
        optimizer.step()
    for parameter, initial in zip(network.parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(parameter, initial)


def test_the_initial_values_are_a_copy():
    network = nn.Linear(3, 2)
    regularizer = L2InitRegularizer(network, strength=1.0)
    assert regularizer.penalty() == 0
    with torch.no_grad():
        network.weight.add_(1)
    assert regularizer.penalty().item() == pytest.approx(6)


def test_the_initial_values_are_state():
    network = nn.Linear(3, 2)
    state = L2InitRegularizer(network, strength=1.0).state_dict()
    moved(network)
    resumed = L2InitRegularizer(network, strength=1.0)
    assert resumed.penalty() == 0
    resumed.load_state_dict(state)
    assert resumed.penalty() > 0
    with pytest.raises(ValueError, match="weight"):
        resumed.load_state_dict(L2InitRegularizer(nn.Linear(4, 2)).state_dict())


@pytest.mark.parametrize("method", METHODS)
def test_tied_and_left_out_parameters(method):
    network = Tied()
    regularizer = method(network, strength=1.0, roles={"head.bias": None})
    moved(network)
    regularizer.before_step()
    assert not network.head.bias.grad.any()
    expected = 2 * network.head.weight.detach()
    if method is L2Regularizer:
        torch.testing.assert_close(network.head.weight.grad, expected)


@pytest.mark.parametrize("method", METHODS)
def test_twenty_steps_are_the_oracles(method, small_network):
    network = small_network()
    initial = parameters64(network)

    def penalty(parameters):
        total = torch.zeros((), dtype=torch.float64)
        for name, parameter in parameters.items():
            goal = initial[name] if method is L2InitRegularizer else 0.0
            total = total + ((parameter - goal) ** 2).sum()
        return total

    assert_follows(network, method(network, strength=0.2), descended(penalty, 0.2))
