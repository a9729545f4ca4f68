"""UPGD against the published updates, written out in float64."""

import pytest
import torch
from torch import nn

from oracles.regularizers import parameters64
from oracles.training import LR, assert_follows
from supple import UPGD
from support.resting import resting


class Oracle:
    """u = EMA(−gθ); gate = sigmoid(û / max û); θ ← (1 − αλ)θ − αd(1 − gate), without noise.

    The direction d is the gradient, or with Adam m̂ / (√v̂ + ε).
    """

    def __init__(self, parameters, decay, weight_decay, adam=False, corrected=True):
        self.decay, self.weight_decay, self.adam, self.corrected = decay, weight_decay, adam, corrected
        self.first = {name: torch.zeros_like(value) for name, value in parameters.items()}
        self.second = {name: torch.zeros_like(value) for name, value in parameters.items()}
        self.utility = {name: torch.zeros_like(value) for name, value in parameters.items()}

    def __call__(self, parameters, gradients, number):
        for name, value in parameters.items():
            self.utility[name] = self.decay * self.utility[name] - (1 - self.decay) * gradients[name] * value
        corrected = {name: utility / (1 - self.decay**number) for name, utility in self.utility.items()}
        largest = max(u.max().item() for u in (corrected if self.corrected else self.utility).values())
        return {
            name: (1 - LR * self.weight_decay) * value
            - LR * self.direction(name, gradients[name], number) * (1 - torch.sigmoid(corrected[name] / largest))
            for name, value in parameters.items()
        }

    def direction(self, name, gradient, number):
        if not self.adam:
            return gradient
        self.first[name] = 0.9 * self.first[name] + 0.1 * gradient
        self.second[name] = 0.999 * self.second[name] + 0.001 * gradient**2
        return (self.first[name] / (1 - 0.9**number)) / ((self.second[name] / (1 - 0.999**number)).sqrt() + 1e-8)


@pytest.mark.parametrize(("decay", "weight_decay"), [(0.0, 0.0), (0.9, 0.1), (0.999, 0.1)])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("corrected", [True, False])
def test_twenty_steps_are_the_published_ones(decay, weight_decay, optimizer, corrected, small_network):
    network = small_network()
    oracle = Oracle(parameters64(network), decay, weight_decay, optimizer is torch.optim.Adam, corrected)
    options = {"decay": decay, "weight_decay": weight_decay, "corrected_maximum": corrected}
    assert_follows(network, UPGD(network, noise=0.0, **options), oracle, rtol=1e-6, optimizer=optimizer)


def test_half_the_strength_is_half_of_the_change():
    changes = []
    for strength in (1.0, 0.5, 0.0):
        network = nn.Linear(3, 2)
        nn.init.constant_(network.weight, 0.7)
        nn.init.constant_(network.bias, -0.2)
        network.weight.grad, network.bias.grad = torch.arange(6.0).view(2, 3), torch.ones(2)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        UPGD(network, strength=strength, weight_decay=0.3, seed=5).attach(optimizer)
        optimizer.step()
        changes.append(network.weight.detach() - (0.7 - 0.1 * torch.arange(6.0).view(2, 3)))
    assert not changes[2].any()
    torch.testing.assert_close(changes[1], changes[0] / 2)


def test_useful_weights_move_less_and_the_largest_utility_is_the_networks():
    network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    for layer, weight in zip(network, (1.0, 4.0), strict=True):
        nn.init.constant_(layer.weight, weight)
        layer.weight.grad = torch.full((1, 1), -1.0)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    UPGD(network, noise=0.0).attach(optimizer)
    optimizer.step()
    for layer, weight, relative_utility in zip(network, (1.0, 4.0), (0.25, 1.0), strict=True):
        gate = torch.sigmoid(torch.tensor(relative_utility))
        torch.testing.assert_close(layer.weight.detach().squeeze(), weight + 1 - gate)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_the_noise_is_normal_gated_and_new_at_every_step(optimizer):
    """With a gradient of zero utilities are zero: every gate is ½."""
    network = nn.Linear(200, 100)
    optimizer = optimizer(network.parameters(), lr=0.1)
    UPGD(network, noise=0.3).attach(optimizer)
    draws = []
    for _ in range(2):
        before = network.weight.detach().clone()
        network.zero_grad()
        resting(network)
        optimizer.step()
        draws.append((before - network.weight.detach()) / 0.1 / 0.5)
    for noise in draws:
        count = noise.numel()
        assert abs(noise.mean()) < 4 * 0.3 / count**0.5
        assert abs(noise.std() / 0.3 - 1) < 4 / (2 * count) ** 0.5
    assert abs(torch.corrcoef(torch.stack([noise.flatten() for noise in draws]))[0, 1]) < 4 / count**0.5


def test_two_optimizers_in_a_loop_without_attach():
    network = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    method = UPGD(network, noise=0.0)
    optimizers = [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in network]
    start = [parameter.detach().clone() for parameter in network.parameters()]
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    method.before_step()
    for optimizer in optimizers:
        optimizer.step()
        method.after_step(optimizer)
    for layer, befores in zip(network, (start[:2], start[2:]), strict=True):
        largest = max((-before).max() for before in befores)  # of û = −gθ, over what this optimizer steps
        for parameter, before in zip(layer.parameters(), befores, strict=True):
            expected = 0.1 * (1 - torch.sigmoid(-before / largest))
            torch.testing.assert_close(before - parameter.detach(), expected)


def test_it_must_see_the_gradients_first():
    network = nn.Linear(2, 2)
    method, optimizer = UPGD(network), torch.optim.SGD(network.parameters(), lr=0.1)
    resting(network)
    optimizer.step()
    with pytest.raises(RuntimeError, match=r"expected before_step\(\) ahead of the optimizer's step"):
        method.after_step(optimizer)
    method.before_step()
    optimizer.step()
    method.after_step(optimizer)
    with pytest.raises(RuntimeError, match="before_step"):
        method.after_step(optimizer)


def test_an_optimizer_that_searches_lines_is_refused():
    network = nn.Linear(2, 2)
    optimizer = torch.optim.LBFGS(network.parameters())
    with pytest.raises(ValueError, match=r"one gradient a step, got a LBFGS.*such as SGD or Adam"):
        UPGD(network).attach(optimizer)
    assert not optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize("options", [{"noise": -1.0}, {"decay": 1.0}, {"weight_decay": -0.1}, {"noise": float("nan")}])
def test_bad_options_are_named(options):
    (name, value), *_ = options.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        UPGD(nn.Linear(2, 2), **options)


def test_where_every_weight_does_harm_the_least_harmful_one_moves_least():
    """As the paper's quotient has it: û / max û is 1 for the largest, also if that is negative."""
    network = nn.Linear(2, 1, bias=False)
    network.weight.data = torch.tensor([[1.0, 2.0]])
    network.weight.grad = torch.ones(1, 2)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    UPGD(network, noise=0.0).attach(optimizer)
    optimizer.step()
    gates = torch.sigmoid(torch.tensor([[1.0, 2.0]]))  # û = -1 and -2
    torch.testing.assert_close(network.weight.detach(), torch.tensor([[1.0, 2.0]]) - (1 - gates))
