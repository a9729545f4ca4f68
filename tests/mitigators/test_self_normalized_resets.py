"""Self-normalized resets against their definition written out, unit by unit."""

import math

import pytest
import torch
from torch import nn

from oracles.replaced_units import OPTIMIZERS, Replacing, assert_same, batches, perceptron, train
from supple import SelfNormalizedResets


class SelfNormalized(Replacing):
    def __init__(self, *args, share, history, refresh, patience, at_once):
        super().__init__(*args)
        self.share, self.history, self.refresh, self.patience = share, history, refresh, patience
        self.at_once = at_once
        self.units = [[{"silent": 0, "times": [], "threshold": patience} for _ in range(size)] for size in (12, 10)]

    def judge(self, layer, h):
        units, missed = self.units[layer], []
        for index, unit in enumerate(units):
            unit["silent"] += 1
            if any(value > 0 for value in h[:, index].tolist()):
                self.end(unit)
            elif unit["silent"] > unit["threshold"]:
                missed.append(index)
        chosen = sorted(missed, key=lambda index: -units[index]["silent"])[: self.at_once]
        for index in chosen:
            self.end(units[index])
        if self.steps % self.refresh == 0:
            for unit in units:
                unit["threshold"] = self.percentile(unit["times"])
        return chosen

    def end(self, unit):
        unit["times"] = [*unit["times"], unit["silent"]][-self.history :]
        unit["silent"] = 0

    def percentile(self, times):
        if len(times) < 10:
            return self.patience
        return next(t for t in sorted(times) if sum(s > t for s in times) <= self.share * len(times) + 1e-9)

    def fresh(self, layer, chosen):
        rows = self.draw(layer, self.at_once)  # always as many as may be needed
        return dict(zip(chosen, rows, strict=False))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("share", "at_once"), [(0.02, 10), (0.25, 10), (0.25, 2)])
def test_as_the_paper_defines_it(optimizer, share, at_once):
    network = perceptron()
    options = {"history": 16, "refresh": 3, "patience": 7, "at_once": at_once}
    oracle = SelfNormalized(network, optimizer, share=share, **options)
    mine = OPTIMIZERS[optimizer](network)
    method = SelfNormalizedResets(network, strength=share, **options, every=1).attach(mine)
    for step, batch in enumerate(batches(60)):
        train(network, mine, batch)
        oracle.step(batch)
        for group, units in zip(("0", "2"), oracle.units, strict=True):
            for key in ("silent", "threshold"):
                assert method.state[group][key].tolist() == [unit[key] for unit in units]
        assert_same(network, mine, oracle, step)
    assert oracle.replaced >= 5


class Pulses(nn.Module):
    """One hidden unit for each period: it fires where the step, which is the input, is a multiple of it."""

    def __init__(self, periods):
        super().__init__()
        self.enter, self.leave = nn.Linear(len(periods), len(periods)), nn.Linear(len(periods), 1)
        with torch.no_grad():
            self.enter.weight.copy_(torch.eye(len(periods)))
            self.enter.bias.zero_()

    def forward(self, x):
        return self.leave(self.enter(x).relu())


def test_each_unit_is_judged_by_its_own_rhythm():
    periods, deaths = [1, 2, 7, 7, 1], [100, 100, 100, math.inf, math.inf]
    network = Pulses(periods)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    options = {"history": 20, "refresh": 1, "patience": 50, "every": 1, "at_once": 5}
    SelfNormalizedResets(network, **options).attach(optimizer)
    first = {}
    for step in range(1, 160):
        pulse = [float(step % period == 0 and step < death) for period, death in zip(periods, deaths, strict=True)]
        before = network.enter.weight.clone()
        network(torch.tensor([pulse])).sum().backward()
        optimizer.step()
        for unit in (network.enter.weight != before).any(1).nonzero().flatten().tolist():
            first.setdefault(unit, step)
    # Last fired at 99, 98 and 98; missed when silent for longer than 1, 2 and 7 steps.
    assert first == {0: 101, 1: 101, 2: 106}


def test_a_unit_that_never_fired_is_given_its_patience():
    network = perceptron()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    SelfNormalizedResets(network, patience=5, every=1).attach(optimizer)
    for step, batch in enumerate(batches(8), 1):
        train(network, optimizer, batch)
        assert (network[0].bias[0] == 0) == (step >= 6)


@pytest.mark.parametrize(("at_once", "most"), [(1, 1), (3, 3), (None, 3)])
def test_no_more_than_so_many_at_once(at_once, most):
    """By default an eighth, rounded up: 3 of 17."""
    network = nn.Sequential(nn.Linear(2, 17), nn.ReLU(), nn.Linear(17, 1))
    nn.init.constant_(network[0].bias, -9.0)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    SelfNormalizedResets(network, patience=2, every=3, at_once=at_once).attach(optimizer)
    for step in range(1, 10):
        network(torch.ones(4, 2)).sum().backward()
        optimizer.step()
        assert (network[0].bias == 0).sum() == most * (step // 3)


def test_smooth_units_are_silent_where_that_is_said():
    networks = [nn.Sequential(nn.Linear(2, 4), nn.GELU(), nn.Linear(4, 1)) for _ in range(2)]
    for network, quiet in zip(networks, (0.0, 0.01), strict=True):
        with torch.no_grad():
            network[0].weight[1], network[0].bias[1] = 0, -4.0
        optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
        SelfNormalizedResets(network, patience=2, every=1, quiet=quiet).attach(optimizer)
        for _ in range(4):
            network(torch.ones(4, 2)).sum().backward()
            optimizer.step()
        assert (network[0].bias[1] == 0) == (quiet > 0)


@pytest.mark.parametrize("option", ["history", "refresh", "patience", "every", "at_once"])
def test_bad_options_are_refused(option):
    with pytest.raises(ValueError, match=f"expected {option} of at least 1"):
        SelfNormalizedResets(perceptron(), **{option: 0})
    with pytest.raises(ValueError, match="quiet"):
        SelfNormalizedResets(perceptron(), quiet=-1.0)


def test_a_short_history_is_judged_by_itself():
    network = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1))
    with torch.no_grad():
        network[0].weight.zero_()
        network[0].bias.fill_(1.0)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    method = SelfNormalizedResets(network, history=4, refresh=1, patience=50).attach(optimizer)
    for _ in range(4):
        network(torch.randn(4, 2)).sum().backward()
        optimizer.step()
    assert method.state["0"]["threshold"].tolist() == [1.0] * 16


def test_quiet_is_relative_to_the_mean():
    network = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
    with torch.no_grad():
        network[0].weight.zero_()
        network[0].bias.copy_(torch.tensor([1.0, 1.0, 1.0, 9.0]))  # mean 3: a limit of 0.6
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    method = SelfNormalizedResets(network, quiet=0.2).attach(optimizer)
    network(torch.randn(4, 2)).sum().backward()
    optimizer.step()
    assert method.state["0"]["silent"].tolist() == [0.0] * 4


def test_a_batch_that_overflows_is_no_silence():
    network = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
    with torch.no_grad():
        network[0].bias.copy_(torch.tensor([9.0, 9.0, -9.0, -9.0]))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    method = SelfNormalizedResets(network).attach(optimizer)
    x = torch.ones(4, 2)
    network(x).sum().backward()
    optimizer.step()
    network(x * torch.inf)  # the gradients are still those of the first batch
    optimizer.step()
    assert method.state["0"]["silent"].tolist() == [0, 0, 1, 1]
