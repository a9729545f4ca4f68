"""FIRE: the orthogonal factor of each weight matrix, held against singular value decompositions."""

import math

import pytest
import torch
from torch import nn

from supple import FIRE, Population

LAYERS = {
    "tall": lambda: nn.Linear(3, 7),
    "wide": lambda: nn.Linear(7, 3),
    "convolution": lambda: nn.Conv2d(3, 5, (2, 3)),
    "grouped": lambda: nn.Conv2d(4, 6, 2, groups=2),
    "transposed": lambda: nn.ConvTranspose1d(4, 3, 2),
}


def matrices(layer, weight):
    """The matrices (out, in) of a layer, one for each group and position of a kernel, and how many positions."""
    groups = getattr(layer, "groups", 1)
    weight = weight.transpose(0, 1) if isinstance(layer, nn.ConvTranspose1d) else weight
    parts = [part.flatten(2).unbind(2) if part.ndim > 2 else [part] for part in weight.chunk(groups)]
    return [matrix for part in parts for matrix in part], math.prod(weight.shape[2:])


def polar(matrix):
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    return u @ v


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("share", [1.0, 0.25])
def test_each_matrix_moves_to_its_polar_factor(kind, share):
    layer = LAYERS[kind]()
    before, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    FIRE(layer, share, iterations=60).start_task()
    old, positions = matrices(layer, before)
    new, _ = matrices(layer, layer.weight.detach())
    for was, now in zip(old, new, strict=True):
        target = math.sqrt(was.shape[0] / was.shape[1]) / positions * polar(was)
        torch.testing.assert_close(now, (1 - share) * was + share * target, rtol=1e-4, atol=1e-5)
    assert torch.equal(bias, layer.bias)


def test_ten_iterations_act_on_the_singular_values_alone():
    layer = nn.Linear(20, 30)
    u, sigma, v = torch.linalg.svd(layer.weight.detach().double(), full_matrices=False)
    FIRE(layer).start_task()
    x = sigma / sigma.norm()
    for _ in range(10):
        x = 1.5 * x - 0.5 * x**3
    torch.testing.assert_close(layer.weight.detach().double(), math.sqrt(30 / 20) * u @ x.diag() @ v, rtol=0, atol=1e-5)


def test_members_of_a_population_are_networks_of_their_own_with_their_own_strengths():
    population = Population(lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.Linear(4, 5)), [3, 8])
    alone = population.member(1)
    before = [parameter[0].clone() for parameter in population.parameters()]
    FIRE(population, torch.tensor([0.0, 1.0])).start_task()
    FIRE(alone).start_task()
    for old, stacked, parameter in zip(before, population.parameters(), alone.parameters(), strict=True):
        assert torch.equal(old, stacked[0])
        torch.testing.assert_close(stacked[1], parameter)


def test_embeddings_unknown_and_frozen_parameters_stay():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.ones(3, 3))

    network = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.LayerNorm(4), Own(), nn.Linear(4, 2))
    network[4].weight.requires_grad_(False)
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    FIRE(network).start_task()
    changed = [name for name, p in network.named_parameters() if not torch.equal(p, before[name])]
    assert changed == ["1.weight"]
    FIRE(network, roles={"0.weight": "matrix"}).start_task()
    assert not torch.equal(network[0].weight, before["0.weight"])


def test_a_matrix_of_zeros_stays_and_half_precision_is_computed_in_float32():
    layer, half = nn.Linear(6, 6), nn.Linear(6, 6)
    half.load_state_dict(layer.state_dict())
    half.bfloat16()
    layer.load_state_dict(half.state_dict())
    for network in (layer, half):
        FIRE(network).start_task()
    assert torch.equal(half.weight, layer.weight.bfloat16())
    nn.init.zeros_(layer.weight)
    FIRE(layer).start_task()
    assert not layer.weight.any()


@pytest.mark.parametrize(
    ("options", "message"), [({"iterations": 0}, "1 or more iterations"), ({"strength": 2}, "to 1")]
)
def test_what_it_cannot_do_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FIRE(nn.Linear(2, 2), **options)
    with pytest.raises(ValueError, match="a weight matrix"):
        FIRE(nn.Sequential(nn.Embedding(3, 2)))
