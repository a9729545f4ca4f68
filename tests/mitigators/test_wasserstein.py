"""Wasserstein regularization against its formula, sorted and differentiated in float64."""

import pytest
import torch
from torch import nn

from oracles.regularizers import owned, parameters64
from oracles.training import assert_follows, descended
from supple import WassersteinRegularizer
from supple.mitigators.wasserstein import sorting_order
from support.resting import resting
from support.zoo import ZOO, relative_error

every_reduction = pytest.mark.parametrize("reduction", ["sum", "mean"])


def oracle(parameters, initial, reduction):
    """Σ over tensors of ‖sort(θ) − sort(θ⁽⁰⁾)‖², summed or averaged over a tensor's entries."""
    total = torch.zeros((), dtype=torch.float64)
    for name, parameter in parameters.items():
        squares = (parameter.flatten().sort().values - initial[name].flatten().sort().values) ** 2
        total = total + (squares.sum() if reduction == "sum" else squares.mean())
    return total


def moved(network):
    """With gradients of zero."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))
    return resting(network)


@every_reduction
@pytest.mark.parametrize("name", ZOO)
def test_gradient_and_penalty_are_the_oracles(name, reduction):
    network = ZOO[name]()
    regularizer = WassersteinRegularizer(network, strength=0.3, reduction=reduction)
    initial = parameters64(network)
    moved(network)
    parameters = {name: value.requires_grad_() for name, value in parameters64(network).items()}
    expected = 0.3 * oracle(parameters, initial, reduction)
    expected.backward()
    torch.testing.assert_close(regularizer.penalty().double(), expected.detach(), rtol=1e-5, atol=0)
    regularizer.before_step()
    for name, _, _, parameter in owned(network):
        assert relative_error(parameter.grad, parameters[name].grad) <= 1e-5, name


@every_reduction
def test_twenty_steps_are_the_oracles(reduction, small_network):
    network = small_network()
    initial = parameters64(network)
    method = WassersteinRegularizer(network, strength=0.2, reduction=reduction)
    assert_follows(network, method, descended(lambda p: oracle(p, initial, reduction), 0.2))


def test_a_permutation_costs_nothing():
    network = resting(nn.Linear(5, 4))
    regularizer = WassersteinRegularizer(network, strength=1.0)
    with torch.no_grad():
        network.weight.copy_(network.weight.flatten()[torch.randperm(20)].view(4, 5))
        network.bias.copy_(network.bias.flip(0))
    regularizer.before_step()
    assert regularizer.penalty() == 0
    assert not network.weight.grad.any()


def test_ties_share_what_their_places_ask_for():
    """Which of equal entries takes which place is open; together they are pulled to the places' values."""
    network = resting(nn.Linear(6, 1, bias=False))
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]))
    regularizer = WassersteinRegularizer(network, strength=1.0)
    nn.init.constant_(network.weight, 3.0)
    assert regularizer.penalty().item() == 4 + 1 + 0 + 1 + 4 + 9
    regularizer.before_step()
    assert sorted(network.weight.grad.flatten().tolist()) == [-6, -4, -2, 0, 2, 4]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    optimizer.step()
    assert sorted(network.weight.flatten().tolist()) == [1, 2, 3, 4, 5, 6]


def test_the_initial_values_are_those_before_the_first_step():
    network = nn.Linear(3, 2)
    initial = network.weight.detach().flatten().sort().values
    optimizer = torch.optim.SGD(network.parameters(), lr=0.25)
    WassersteinRegularizer(network, strength=1.0).attach(optimizer)
    moved(network)
    for _ in range(60):
        optimizer.zero_grad()
        resting(network)
        optimizer.step()
    torch.testing.assert_close(network.weight.detach().flatten().sort().values, initial)


def test_the_mean_is_the_sum_by_the_number_of_entries():
    networks = [nn.Linear(5, 4, bias=False), nn.Linear(5, 4, bias=False)]
    networks[1].load_state_dict(networks[0].state_dict())
    total, mean = (
        WassersteinRegularizer(network, strength=1.0, reduction=reduction)
        for network, reduction in zip(networks, ("sum", "mean"), strict=True)
    )
    for network in networks:
        nn.init.ones_(network.weight)
    torch.testing.assert_close(total.penalty(), 20 * mean.penalty())


def test_another_reduction_is_refused():
    with pytest.raises(ValueError, match="expected 'sum' or 'mean' as reduction, got 'max'"):
        WassersteinRegularizer(nn.Linear(2, 2), reduction="max")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1,), (7,), (2, 3, 50), (40_000,), (2, 40_000)])
def test_the_order_sorts(shape, dtype):
    values = (torch.randn(shape) * torch.randn(shape).exp()).to(dtype)
    flat = values.view(-1)
    flat[:7] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 1e-7, -1e-7, 0.0], dtype=dtype)[: len(flat)]
    order = sorting_order(values)
    torch.testing.assert_close(values.gather(-1, order), values.sort(-1).values, rtol=0, atol=0)
    torch.testing.assert_close(order.sort(-1).values, torch.arange(shape[-1]).expand(shape), rtol=0, atol=0)


def test_the_order_sorts_what_is_not_contiguous():
    values = torch.randn(5, 4).T
    torch.testing.assert_close(values.gather(-1, sorting_order(values)), values.sort(-1).values, rtol=0, atol=0)
