"""Weight clipping: ζ/√fan-in, for each kind of layer with its fan-in counted by hand."""

import math

import pytest
import torch
from torch import nn

from oracles.training import LR, assert_follows
from supple import Population, WeightClipping
from support.resting import resting

FAN_IN = {
    "linear": (lambda: nn.Linear(9, 4), 9),
    "conv1d": (lambda: nn.Conv1d(3, 5, 2), 3 * 2),
    "conv2d": (lambda: nn.Conv2d(3, 5, (2, 3)), 3 * 2 * 3),
    "conv2d-grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), 2 * 3 * 3),
    "conv-transpose": (lambda: nn.ConvTranspose2d(3, 5, (2, 3)), 3 * 2 * 3),
    "conv-transpose-grouped": (lambda: nn.ConvTranspose2d(6, 4, 3, groups=2), 3 * 3 * 3),
    "attention": (lambda: nn.MultiheadAttention(6, 2), 6),
}
OF_SMALL_NETWORK = {"0": 2 * 3, "3": 6 * 2, "5": 10, "8": 5}


def step_after(network):
    return torch.optim.SGD(resting(network).parameters(), lr=LR)


@pytest.mark.parametrize("name", FAN_IN)
@pytest.mark.parametrize("strength", [0.5, 3.0, torch.tensor(0.5)])
def test_weights_and_biases_are_held_by_the_fan_in(name, strength):
    make, fan_in = FAN_IN[name]
    network = make()
    bound = 1 / (float(strength) * math.sqrt(fan_in))
    for parameter in network.parameters():
        nn.init.uniform_(parameter, -3 * bound, 3 * bound)
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    WeightClipping(network, strength=strength).after_step(step_after(network))
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name].clamp(-bound, bound), rtol=1e-6, atol=0)
        assert not torch.equal(parameter, before[name])


def test_twenty_steps_are_the_oracles(small_network):
    network = small_network()

    def step(parameters, gradients, number):
        moved = {name: value - LR * gradients[name] for name, value in parameters.items()}
        for name, value in moved.items():
            if (layer := name.partition(".")[0]) in OF_SMALL_NETWORK:
                bound = 1 / (2.5 * math.sqrt(OF_SMALL_NETWORK[layer]))
                moved[name] = value.apply_(lambda entry, bound=bound: max(-bound, min(bound, entry)))
        return moved

    assert_follows(network, WeightClipping(network, strength=2.5), step)


def test_gains_and_biases_of_norms_are_left_alone():
    network = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.BatchNorm1d(4), nn.PReLU(4))
    for parameter in network.parameters():
        nn.init.constant_(parameter, 7.0)
    WeightClipping(network).after_step(step_after(network))
    assert (network[0].weight == 1).all()
    assert (network[0].bias == 1).all()
    assert all((parameter == 7).all() for layer in network[1:] for parameter in layer.parameters())


@pytest.mark.parametrize("weight_norm", [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
def test_a_layer_whose_weight_is_computed_is_left_alone(weight_norm):
    network = nn.Sequential(weight_norm(nn.Linear(4, 2)), nn.Linear(2, 2))
    for parameter in network.parameters():
        nn.init.constant_(parameter, 7.0)
    WeightClipping(network).after_step(step_after(network))
    assert all((parameter == 7).all() for parameter in network[0].parameters())
    assert not any((parameter == 7).any() for parameter in network[1].parameters())


@pytest.mark.parametrize("name", ["linear", "conv2d", "conv2d-grouped"])
def test_the_default_initialization_lies_within_one(name):
    network = FAN_IN[name][0]()
    before = [parameter.detach().clone() for parameter in network.parameters()]
    WeightClipping(network, strength=1 - 1e-6).after_step(step_after(network))
    assert all(torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))


def test_members_have_bounds_of_their_own():
    population = Population(lambda: nn.Linear(4, 2), [0, 1, 2])
    for parameter in population.parameters():
        nn.init.constant_(parameter, 7.0)
    WeightClipping(population, strength=torch.tensor([0.0, 0.5, 1.0])).after_step(step_after(population))
    for parameter in population.parameters():
        assert [member.unique().tolist() for member in parameter] == [[7.0], [1.0], [0.5]]


def test_a_network_without_matrices_is_refused():
    with pytest.raises(ValueError, match=r"expected .*matri"):
        WeightClipping(nn.LayerNorm(3))
