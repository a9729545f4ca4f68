"""Streaming EWC against its moving averages written out, with their corrections, in float64."""

import pytest
import torch
from torch import nn

from oracles.regularizers import parameters64
from oracles.training import LR, assert_follows
from supple import StreamingEWC


class Oracle:
    """Averages start at zero and are divided by 1 − βᵗ; λ F̂ ⊙ (θ − θ̄) joins the gradient."""

    def __init__(self, parameters, strength, decay):
        self.strength, self.decay = strength, decay
        self.mean = {name: torch.zeros_like(value) for name, value in parameters.items()}
        self.fisher = {name: torch.zeros_like(value) for name, value in parameters.items()}

    def pull(self, name, parameter, gradient, number):
        self.mean[name] = self.decay * self.mean[name] + (1 - self.decay) * parameter
        self.fisher[name] = self.decay * self.fisher[name] + (1 - self.decay) * gradient**2
        correction = 1 - self.decay**number
        return self.strength * self.fisher[name] / correction * (parameter - self.mean[name] / correction)

    def __call__(self, parameters, gradients, number):
        return {
            name: value - LR * (gradients[name] + self.pull(name, value, gradients[name], number))
            for name, value in parameters.items()
        }


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.999])
def test_twenty_steps_are_the_oracles(decay, small_network):
    network = small_network()
    oracle = Oracle(parameters64(network), 30.0, decay)
    assert_follows(network, StreamingEWC(network, strength=30.0, decay=decay), oracle, rtol=1e-6)


def test_the_first_step_is_the_plain_one():
    """The average is then where the weights are."""
    network = nn.Linear(3, 2)
    network.weight.grad, network.bias.grad = torch.randn(2, 3), torch.randn(2)
    given = network.weight.grad.clone()
    StreamingEWC(network, strength=100.0).before_step()
    assert torch.equal(network.weight.grad, given)


def test_what_never_had_a_gradient_is_free():
    network = nn.Linear(3, 2)
    method = StreamingEWC(network, strength=100.0, decay=0.9)
    for _ in range(3):
        network.weight.grad, network.bias.grad = torch.zeros(2, 3), torch.ones(2)
        nn.init.normal_(network.weight)
        nn.init.normal_(network.bias)
        method.before_step()
    assert not network.weight.grad.any()
    assert (network.bias.grad != 1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_average_moves_also_where_a_share_is_below_rounding(dtype):
    """2,000 steps at a new place: 86 % of what came before is forgotten, also in a type with eight bits."""
    network = nn.Linear(1, 1, bias=False, dtype=dtype)
    method = StreamingEWC(network, strength=1.0, decay=0.999)
    for value, steps in ((1.0, 1000), (2.0, 2000)):
        nn.init.constant_(network.weight, value)
        for _ in range(steps):
            network.weight.grad = torch.ones_like(network.weight)
            method.before_step()
    weights = (1 - 0.999**1000) * 0.999**2000, 1 - 0.999**2000
    expected = (weights[0] * 1 + weights[1] * 2) / sum(weights)
    assert method.state["weight"]["mean"].item() == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_bad_decay_is_refused(decay):
    with pytest.raises(ValueError, match=rf"expected a decay.*{decay}"):
        StreamingEWC(nn.Linear(2, 2), decay=decay)


def test_there_is_no_penalty_before_the_first_step():
    assert StreamingEWC(nn.Linear(2, 2)).penalty() == 0
