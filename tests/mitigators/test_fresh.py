"""Parameters drawn anew: from the modules' own initialisers, in their order, with random numbers of their own."""

import copy

import pytest
import torch
from torch import nn

from oracles import Custom, Tied
from supple import Population
from supple.mitigators.fresh import FreshParameters


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def fresh(network):
    return FreshParameters(network, [name for name, _ in network.named_parameters()])


class ZeroHead(nn.Module):
    """Its own initialiser, after its parts', sets the head to zero."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(3, 3), nn.Linear(3, 2)
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.zeros_(self.head.weight)


LAYERS = {
    "linear": lambda: nn.Linear(3, 4),
    "conv": lambda: nn.Conv2d(2, 3, 2),
    "norm": lambda: nn.BatchNorm1d(3),
    "attention": lambda: nn.MultiheadAttention(4, 2),
    "lstm": lambda: nn.LSTM(3, 4),
    "nested": lambda: nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2))),
    "zero-head": ZeroHead,
    "tied": Tied,
}


@pytest.mark.parametrize("name", LAYERS)
def test_values_are_those_of_a_new_network(name):
    """The same range and the same constants entry by entry: constant where a new network always is, new elsewhere."""
    drawn = [fresh(LAYERS[name]()).draw(generators(seed)) for seed in range(3)]
    built = [dict(LAYERS[name]().named_parameters()) for _ in range(3)]
    for key, value in drawn[0].items():
        constant = all(torch.equal(built[0][key], other[key]) for other in built)
        assert value.shape == built[0][key].shape
        assert not value.requires_grad
        for other in drawn[1:]:
            assert torch.equal(value, other[key]) == constant, key
        if constant:
            assert torch.equal(value, built[0][key]), key
        else:
            ratio = (
                torch.cat([d[key].flatten() for d in drawn]).std()
                / torch.cat([b[key].detach().flatten() for b in built]).std()
            )
            assert 0.4 < ratio < 2.5, key


def test_each_draw_is_another_and_repeats_by_the_generator():
    network = nn.Linear(3, 2)
    first, again = fresh(network), fresh(network)
    one, same = generators(1, 1)
    draws = [first.draw([one])["weight"] for _ in range(3)]
    repeated = [again.draw([same])["weight"] for _ in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(draws, repeated, strict=True))
    assert not torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[1], draws[2])


def test_network_and_global_random_state_are_left_alone():
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    network(torch.randn(5, 3))
    before, random = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    fresh(network).draw(generators(0))
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_a_population_draws_for_each_member_what_it_would_draw_alone():
    population = Population(lambda: nn.Linear(3, 2), [0, 1])
    alone = [fresh(population.member(0)).draw(generators(seed)) for seed in (7, 8)]
    together = FreshParameters(population, ["weight", "bias"]).draw(generators(7, 8))
    for name, value in together.items():
        assert torch.equal(value, torch.stack([member[name] for member in alone]))
    assert not torch.equal(*together["weight"])


def test_a_draw_is_a_copy():
    parameters = fresh(nn.Linear(3, 2))
    first = parameters.draw(generators(0))["weight"]
    kept = first.clone()
    parameters.draw(generators(1))
    assert torch.equal(first, kept)


def test_the_dtype_is_the_networks():
    assert fresh(nn.Linear(3, 2, dtype=torch.bfloat16)).draw(generators(0))["weight"].dtype == torch.bfloat16


def test_a_module_that_cannot_draw_is_named_unless_left_out():
    network = nn.Sequential(nn.Linear(3, 4), Custom())
    with pytest.raises(ValueError, match=r"Custom.*1\.positions.*reset_parameters"):
        fresh(network)
    assert FreshParameters(network, ["0.weight"]).draw(generators(0)).keys() == {"0.weight"}
