"""UPGD with SGD against the published update written out in float64."""

import pytest
import torch
from torch import nn

from naive import LR, assert_follows, small_network
from oracles import parameters64
from resting import resting
from supple import UPGD


class Oracle:
    """u = EMA(−gθ); gate = sigmoid(û / max û); θ ← (1 − αλ)θ − αg(1 − gate), without noise."""

    def __init__(self, parameters, decay, weight_decay):
        self.decay, self.weight_decay = decay, weight_decay
        self.utility = {name: torch.zeros_like(value) for name, value in parameters.items()}

    def __call__(self, parameters, gradients, number):
        for name, value in parameters.items():
            self.utility[name] = self.decay * self.utility[name] - (1 - self.decay) * gradients[name] * value
        corrected = {name: utility / (1 - self.decay**number) for name, utility in self.utility.items()}
        largest = max(utility.max().item() for utility in corrected.values())
        return {
            name: (1 - LR * self.weight_decay) * value
            - LR * gradients[name] * (1 - torch.sigmoid(corrected[name] / largest))
            for name, value in parameters.items()
        }


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.999])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_twenty_steps_are_the_published_ones(decay, weight_decay):
    network = small_network()
    oracle = Oracle(parameters64(network), decay, weight_decay)
    method = UPGD(network, strength=1.0, noise=0.0, decay=decay, weight_decay=weight_decay)
    assert_follows(network, method, oracle, rtol=1e-6)


def test_half_the_strength_is_half_of_the_change():
    changes = []
    for strength in (1.0, 0.5):
        network = nn.Linear(3, 2)
        nn.init.constant_(network.weight, 0.7)
        nn.init.constant_(network.bias, -0.2)
        network.weight.grad, network.bias.grad = torch.arange(6.0).view(2, 3), torch.ones(2)
        UPGD(network, strength=strength, weight_decay=0.3, seed=5).before_step()
        changes.append(network.weight.grad - torch.arange(6.0).view(2, 3))
    torch.testing.assert_close(changes[1], changes[0] / 2)


def test_useful_weights_move_less_and_the_largest_utility_is_the_networks():
    network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    for layer, weight in zip(network, (1.0, 4.0), strict=True):
        nn.init.constant_(layer.weight, weight)
        layer.weight.grad = torch.full((1, 1), -1.0)
    UPGD(network, noise=0.0).before_step()
    for layer, relative_utility in zip(network, (0.25, 1.0), strict=True):
        gate = torch.sigmoid(torch.tensor(relative_utility))
        torch.testing.assert_close(layer.weight.grad.squeeze(), -(1 - gate))


def test_the_noise_is_normal_gated_and_new_at_every_step():
    """With a gradient of zero utilities are zero: every gate is ½."""
    network = nn.Linear(200, 100)
    method = UPGD(network, noise=0.3)
    draws = []
    for _ in range(2):
        network.zero_grad()
        resting(network)
        method.before_step()
        draws.append(network.weight.grad / 0.5)
    for noise in draws:
        count = noise.numel()
        assert abs(noise.mean()) < 4 * 0.3 / count**0.5
        assert abs(noise.std() / 0.3 - 1) < 4 / (2 * count) ** 0.5
    assert abs(torch.corrcoef(torch.stack([noise.flatten() for noise in draws]))[0, 1]) < 4 / count**0.5


@pytest.mark.parametrize("options", [{"noise": -1.0}, {"decay": 1.0}, {"weight_decay": -0.1}, {"noise": float("nan")}])
def test_bad_options_are_named(options):
    (name, value), *_ = options.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        UPGD(nn.Linear(2, 2), **options)
