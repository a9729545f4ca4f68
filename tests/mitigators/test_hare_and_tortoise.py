"""Hare and tortoise against its slow average written out in float64."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from oracles.regularizers import parameters64
from oracles.training import LR, assert_follows
from supple import HareAndTortoise
from support.resting import resting


@pytest.mark.parametrize("every", [1, 6])
@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_twenty_steps_are_the_oracles(every, strength, small_network):
    network = small_network()
    slow = parameters64(network)

    def step(parameters, gradients, number):
        fast = {name: value - LR * gradients[name] for name, value in parameters.items()}
        for name, value in fast.items():
            slow[name] = 0.9 * slow[name] + 0.1 * value
            if number % every == 0:
                fast[name] = (1 - strength) * value + strength * slow[name]
        return fast

    assert_follows(network, HareAndTortoise(network, strength=strength, decay=0.9, every=every), step)


@pytest.mark.parametrize("every", [1, 4])
def test_it_returns_at_exactly_every_so_many_steps(every):
    network = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    method = HareAndTortoise(network, every=every).attach(optimizer)
    for step in range(1, 13):
        network.weight.grad, network.bias.grad = torch.ones(2, 3), torch.ones(2)
        optimizer.step()
        for name, parameter in network.named_parameters():
            close = torch.allclose(parameter, method.state[name]["slow"], rtol=0, atol=1e-6)
            assert close == (step % every == 0), step


def test_a_network_between_two_optimizers_returns_whole():
    network = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    optimizers = [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in network]
    method = HareAndTortoise(network, every=4)
    for optimizer in optimizers:
        method.attach(optimizer)
    for step in range(1, 13):
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)
        for optimizer in optimizers:
            optimizer.step()
        for name, parameter in network.named_parameters():
            close = torch.allclose(parameter, method.state[name]["slow"], rtol=0, atol=1e-6)
            assert close == (step % 4 == 0), (step, name)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_is_skipped_for_an_overflow_postpones_the_return(fused):
    network = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, fused=fused)
    method = HareAndTortoise(network, every=3).attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    returns = []
    for step in range(1, 8):
        optimizer.zero_grad()
        scaler.scale(network(torch.ones(1, 3)).sum() * (math.inf if step == 3 else 1)).backward()
        scaler.step(optimizer)
        scaler.update()
        close = torch.allclose(network.weight, method.state["weight"]["slow"], rtol=0, atol=1e-6)
        returns += [step] if close else []
    assert returns == [4, 7]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_tortoise_moves_also_where_its_share_is_below_rounding(dtype):
    network = nn.Linear(1, 1, bias=False, dtype=dtype)
    nn.init.constant_(network.weight, 1.0)
    method = HareAndTortoise(network, every=2000, decay=0.999)
    optimizer = torch.optim.SGD(resting(network).parameters(), lr=0.0)
    nn.init.constant_(network.weight, 2.0)
    for _ in range(2000):
        method.after_step(optimizer)
    assert network.weight.item() == pytest.approx(2 - 0.999**2000, rel=1e-2)


def test_the_slow_copy_starts_where_the_fast_one_is_and_is_a_copy():
    network = nn.Linear(3, 2)
    start = network.weight.detach().clone()
    method = HareAndTortoise(network)
    nn.init.zeros_(network.weight)
    assert torch.equal(method.state["weight"]["slow"], start)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"every": 0}, "every=0"), ({"decay": 1.0}, r"decay.*1\.0"), ({"decay": -0.5}, r"decay.*-0\.5")],
    ids=str,
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        HareAndTortoise(nn.Linear(2, 2), **options)


def test_running_statistics_are_averaged_and_returned():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    statistics, slow = network[1].running_mean, network[1].running_mean.clone()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    HareAndTortoise(network, decay=0.9, every=3).attach(optimizer)
    for step in range(1, 7):
        network(torch.randn(8, 3) + 2).square().sum().backward()
        fast = statistics.clone()
        optimizer.step()
        slow = 0.9 * slow + 0.1 * fast
        torch.testing.assert_close(statistics, fast if step % 3 else slow)
    assert network[1].num_batches_tracked == 6


@pytest.mark.parametrize("absent", ["frozen", "in no optimizer"])
def test_statistics_are_averaged_also_where_the_first_parameter_is_not_trained(absent):
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    network[0].requires_grad_(absent != "frozen")
    statistics = network[1].running_mean
    optimizer = torch.optim.SGD(network[1].parameters(), lr=0.1)
    method = HareAndTortoise(network, decay=0.9, every=3).attach(optimizer)
    slow = statistics.clone()
    for _ in range(3):
        network(torch.randn(8, 3) + 2).square().sum().backward()
        slow = 0.9 * slow + 0.1 * statistics
        optimizer.step()
        torch.testing.assert_close(method.state["1.running_mean"]["slow"], slow)
    torch.testing.assert_close(statistics, slow)


class Masked(nn.Module):
    """Attends only to the past, and keeps the size of its last batch in a buffer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1))
        self.register_buffer("last", torch.zeros(1))

    def forward(self, x):
        self.last = torch.zeros(len(x))
        return self.layer(x) @ self.mask.softmax(-1)


def test_other_buffers_are_left_as_they_are():
    network = Masked()
    mask = network.mask.clone()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    HareAndTortoise(network, decay=0.9, every=2).attach(optimizer)
    for batch in (3, 5):
        network(torch.randn(batch, 4)).sum().backward()
        optimizer.step()
    assert torch.equal(network.mask, mask)
    assert network.last.shape == (5,)


@pytest.mark.parametrize("make_network", [lambda: nn.Linear(4, 4), lambda: nn.BatchNorm1d(4)])
def test_pruning_masks_are_not_averaged(make_network):
    network = make_network()
    prune.random_unstructured(network, "weight", 0.25)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    HareAndTortoise(network, decay=0.9, every=2).attach(optimizer)
    prune.random_unstructured(network, "weight", 0.5)
    mask = network.weight_mask.clone()
    for _ in range(2):
        network(torch.randn(8, 4)).sum().backward()
        optimizer.step()
    assert torch.equal(network.weight_mask, mask)


def test_a_network_between_two_optimizers_averages_its_statistics_once_a_step():
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizers = [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in network]
    method = HareAndTortoise(network, decay=0.9)
    for optimizer in optimizers:
        method.attach(optimizer)
    slow = network[1].running_mean.clone()
    for _ in range(3):
        network(torch.randn(8, 3) + 2).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()
        slow = 0.9 * slow + 0.1 * network[1].running_mean
        torch.testing.assert_close(method.state["1.running_mean"]["slow"], slow)
