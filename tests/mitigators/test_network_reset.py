"""A network reset: which layers, how often, with which numbers, and the optimizer's memory with them."""

import copy
import math

import pytest
import torch
from torch import nn

from perceptrons import OPTIMIZERS, batches, perceptron, train
from supple import NetworkReset, Population
from supple.mitigators.base import APART


def changed(network, before):
    return {n for (n, a), b in zip(network.named_parameters(), before.parameters(), strict=True) if (a != b).any()}


def reset_once(network, **options):
    before = copy.deepcopy(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    NetworkReset(network, every=1, **options).attach(optimizer)
    optimizer.step()
    return changed(network, before)


def test_which_layers():
    weights = {f"{index}.{name}" for index in (0, 2, 4) for name in ("weight", "bias")}
    assert reset_once(perceptron()) == weights
    assert reset_once(perceptron(), layers=1) == {"4.weight", "4.bias"}
    assert reset_once(perceptron(), layers=2) == {"2.weight", "2.bias", "4.weight", "4.bias"}
    assert reset_once(perceptron(), layers=["0"]) == {"0.weight", "0.bias"}
    assert reset_once(perceptron(), roles={"0.weight": None}) == weights - {"0.weight"}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_as_a_run_that_starts_again(optimizer):
    """After a reset training goes on as from a fresh network with a fresh optimizer, to the bit."""
    network = perceptron()
    mine = OPTIMIZERS[optimizer](network)
    NetworkReset(network, every=10, seed=5).attach(mine)
    random = torch.Generator().manual_seed(APART + 5)
    twin, theirs = copy.deepcopy(network), None
    fresh = []
    for step, batch in enumerate(batches(25), 1):
        train(network, mine, batch)
        if theirs is not None:
            train(twin, theirs, batch)
            if step % 10:
                assert not changed(network, twin), step
        if step % 10 == 0:
            torch.manual_seed(int(torch.randint(2**62, (), generator=random)))
            for index in (4, 2, 0):
                twin[index].reset_parameters()
            theirs = OPTIMIZERS[optimizer](twin)
            assert not changed(network, twin)
            fresh.append(copy.deepcopy(twin))
    assert len(changed(*fresh)) == 6, "each reset draws other numbers"


def test_part_of_the_way():
    network = perceptron()
    before, whole = copy.deepcopy(network), copy.deepcopy(network)
    for target, strength in ((network, 0.25), (whole, 1.0)):
        optimizer = torch.optim.SGD(target.parameters(), lr=0.0, momentum=0.9)
        NetworkReset(target, strength=strength, every=1).attach(optimizer)
        train(target, optimizer, next(batches(1)))
        momentum = optimizer.state[target[0].weight]["momentum_buffer"]
        if strength < 1:
            kept = momentum.clone()
        else:
            assert not momentum.any()
    assert kept.any()
    for mine, old, new in zip(network.parameters(), before.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine, 0.75 * old + 0.25 * new)


def test_batch_norm_statistics_start_anew_and_a_broken_network_recovers():
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = torch.optim.Adam(network.parameters())
    NetworkReset(network, every=3).attach(optimizer)
    for step in range(3):
        optimizer.zero_grad()
        (network(torch.randn(5, 3)).sum() * (math.nan if step == 1 else 1)).backward()
        optimizer.step()
    assert all(parameter.isfinite().all() for parameter in network.parameters())
    assert network[1].running_var.tolist() == [1] * 4
    assert network[1].num_batches_tracked == 0
    assert all(not moment.any() for state in optimizer.state.values() for moment in state.values())


def test_members_are_reset_to_other_networks():
    population = Population(perceptron, [3, 4])
    optimizer = torch.optim.SGD(population.parameters(), lr=0.0)
    NetworkReset(population, strength=torch.tensor([1.0, 1.0]), every=1).attach(optimizer)
    optimizer.step()
    first, second = (population.member(index) for index in range(2))
    assert len(changed(first, second)) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 1.5}, "strength from 0 to 1"),
        ({"every": 0}, "every=0"),
        ({"layers": 0}, "from 1 to 3 layers"),
        ({"layers": 4}, "from 1 to 3 layers"),
        ({"layers": ["5"]}, "module of this network"),
        ({"layers": ["1"]}, "expected layers with parameters"),
        ({"layers": "head"}, r"write \['head'\]"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        NetworkReset(perceptron(), **options)


def test_a_module_that_cannot_draw_its_parameters_is_named():
    network = nn.Sequential(nn.Linear(2, 2), nn.PReLU())
    network.register_parameter("scale", nn.Parameter(torch.ones(2)))
    with pytest.raises(ValueError, match="'scale'"):
        NetworkReset(network)
