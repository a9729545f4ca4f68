"""Continual backprop against the paper's algorithm written out."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn

from oracles.replaced_units import OPTIMIZERS, Replacing, assert_same, batches, perceptron, train
from supple import ContinualBackprop, Population


class Continual(Replacing):
    def __init__(self, *args, rate, maturity, decay, utility):
        super().__init__(*args)
        self.rate, self.maturity, self.decay, self.utility = rate, maturity, decay, utility
        self.units = [[{"age": 0, "utility": 0.0, "mean": 0.0} for _ in range(size)] for size in (12, 10)]
        self.owed = [0.0, 0.0]

    def judge(self, layer, h):
        units, following = self.units[layer], self.layers[layer + 1]
        for index, unit in enumerate(units):
            outgoing = following.weight[:, index].abs().mean().item()
            unit["age"] += 1
            unit["mean"] = self.decay * unit["mean"] + (1 - self.decay) * h[:, index].mean().item()
            if self.utility == "contribution":
                new = h[:, index].abs().mean().item() * outgoing
            else:
                varying = (h[:, index] - self.corrected(unit, "mean")).abs().mean().item()
                new = varying * outgoing / self.layers[layer].weight[index].abs().mean().item()
            unit["utility"] = self.decay * unit["utility"] + (1 - self.decay) * new
        mature = [index for index, unit in enumerate(units) if unit["age"] > self.maturity]
        self.owed[layer] += self.rate * len(mature)
        count = int(self.owed[layer])
        self.owed[layer] -= count
        mature.sort(key=lambda index: self.corrected(units[index], "utility"))
        for index in mature[:count]:
            contribution = self.corrected(units[index], "mean")
            for row in range(following.out_features):
                following.bias[row] += contribution * following.weight[row, index]
            units[index] = {"age": 0, "utility": 0.0, "mean": 0.0}
        return mature[:count]

    def corrected(self, unit, key):
        return unit[key] / (1 - self.decay ** unit["age"])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("utility", ["contribution", "adaptable contribution"])
@pytest.mark.parametrize(("rate", "maturity"), [(0.03125, 5), (0.25, 3), (0.0625, 0)])
def test_as_the_paper_writes_it(optimizer, rate, maturity, utility):
    network = perceptron()
    options = {"maturity": maturity, "decay": 0.9, "utility": utility}
    oracle = Continual(network, optimizer, rate=rate, **options)
    mine = OPTIMIZERS[optimizer](network)
    ContinualBackprop(network, strength=rate, **options).attach(mine)
    for step, batch in enumerate(batches(30)):
        train(network, mine, batch)
        oracle.step(batch)
        assert_same(network, mine, oracle, step)
    assert oracle.replaced >= 10


def test_fractions_are_carried_over_and_new_units_are_safe():
    """Of 10 units at most one every fourth step at a rate of 1/32, and none of them twice within the maturity."""
    network = nn.Sequential(nn.Linear(3, 10), nn.Tanh(), nn.Linear(10, 2))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    method = ContinualBackprop(network, strength=1 / 32, maturity=6).attach(optimizer)
    resets = []
    for step in range(1, 60):
        before = network[0].weight.clone()
        network(torch.randn(4, 3)).sum().backward()
        optimizer.step()
        resets += [(step, unit) for unit in (network[0].weight != before).any(1).nonzero().flatten().tolist()]
    owed, ages, expected = 0.0, [0] * 10, []
    for step in range(1, 60):
        ages = sorted((age + 1 for age in ages), reverse=True)
        owed += sum(age > 6 for age in ages) / 32
        if owed >= 1:
            owed, ages[0] = owed - 1, 0
            expected.append(step)
    assert [step for step, _ in resets] == expected
    assert len(expected) >= 10
    for unit in range(10):
        steps = [step for step, which in resets if which == unit]
        assert all(later - earlier > 6 for earlier, later in pairwise(steps))
    assert method.state["0"]["age"].max() <= 60


def test_a_constant_units_contribution_moves_into_the_next_bias():
    """So the function stays what it was: for linear layers, and for a convolution with several places a channel."""
    linear = nn.Sequential(nn.Linear(3, 6), nn.Identity(), nn.Linear(6, 2))
    flattened = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Flatten(), nn.Linear(24, 2))
    convolved = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 2))
    for network, shape in ((linear, (3,)), (flattened, (1, 4, 4)), (convolved, (1, 4, 4))):
        nn.init.zeros_(network[0].weight)
        network[0].bias.data.copy_(torch.arange(1.0, 7.0))
        optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
        ContinualBackprop(network, strength=0.5, maturity=0).attach(optimizer)
        x = torch.randn(5, *shape)
        before = network(x)
        before.sum().backward()
        optimizer.step()
        assert (network[0].bias == 0).sum() == 3
        torch.testing.assert_close(network(x), before)


def test_members_replace_units_at_their_own_rates():
    rates = torch.tensor([0.0, 0.05, 0.5])
    population = Population(perceptron, [0, 1, 2])
    before = copy.deepcopy(population.stacked[4].bias)
    optimizer = torch.optim.SGD(population.parameters(), lr=0.0)
    method = ContinualBackprop(population, strength=rates, maturity=1).attach(optimizer)
    for x, _ in batches(6):
        optimizer.zero_grad()
        population(x.expand(3, *x.shape)).sum().backward()
        optimizer.step()
    replaced = (method.state["0"]["age"] < 6).sum(-1).tolist()
    assert replaced[0] == 0 < replaced[1] < replaced[2]
    assert torch.equal(population.stacked[4].bias[0], before[0])


@pytest.mark.parametrize("options", [{"strength": 1.5}, {"maturity": -1}, {"decay": 1.0}, {"utility": "none"}])
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match="expected a"):
        ContinualBackprop(perceptron(), **options)


class Twice(nn.Module):
    """One layer of units, which two layers read."""

    def __init__(self):
        super().__init__()
        self.body, self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 1, bias=False), nn.Linear(4, 3, bias=False)

    def forward(self, x):
        h = self.body(x).relu()
        return self.a(h).sum() + self.b(h).sum()


def test_all_layers_that_read_a_unit_count():
    network = Twice()
    method = ContinualBackprop(network)
    (group,) = method.groups
    expected = torch.cat([network.a.weight, network.b.weight]).abs().mean(0)
    torch.testing.assert_close(method._worth_of_weights(group, dict(network.named_parameters())), expected)


def test_a_batch_that_overflows_leaves_the_averages_as_they_are():
    network = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    method = ContinualBackprop(network).attach(optimizer)
    x = torch.randn(8, 3)
    network(x).sum().backward()
    optimizer.step()
    before = copy.deepcopy(method.state["0"])
    network(x * torch.inf)  # the gradients are still those of the first batch
    optimizer.step()
    for key in ("utility", "mean"):
        assert before[key].any()
        assert torch.equal(method.state["0"][key], before[key])
