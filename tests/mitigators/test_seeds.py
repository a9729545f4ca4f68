"""What a method draws anew is not what the network began with, though both have the same seed."""

import pytest
import torch
from torch import nn

from supple import NetworkReset, Population, ReDo, ShrinkAndPerturb

METHODS = {
    "NetworkReset": lambda network: NetworkReset(network, strength=1.0, every=1),
    "ReDo": lambda network: ReDo(network, strength=100.0, every=1),  # every unit counts as dormant
    "ShrinkAndPerturb": lambda network: ShrinkAndPerturb(network, strength=1.0),
}


def make():
    return nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", [0, 7])
def test_a_network_is_not_drawn_anew_as_it_was(method, seed):
    population = Population(make, [seed])
    before = population.stacked[0].weight[0].clone()
    optimizer = torch.optim.SGD(population.parameters(), lr=0.0)
    METHODS[method](population).attach(optimizer)
    population(torch.randn(1, 8, 6)).sum().backward()
    optimizer.step()
    now = population.stacked[0].weight[0].detach()
    assert not torch.isclose(now.flatten()[:, None], before.flatten()).any(0).all()
    assert (now != before).all()
