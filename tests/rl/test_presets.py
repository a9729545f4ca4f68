"""Each preset is the paper's but for what is listed here."""

import dataclasses

import pytest
import torch

from supple.rl.networks import Actor
from supple.rl.presets import PRESETS, Constants

# Read from the published programs, written down a second time: a preset that changes must change here too.
LISTED = {
    "paper": {},
    "doro": {"critics": 2, "layer_norm": False},
    "cleanrl": {
        "replay_ratio": 1,
        "random_steps": 5_000,
        "critics": 2,
        "layer_norm": False,
        "initialization": "torch",
        "log_deviation": (-5, 2),
        "critic_step_size": 1e-3,
        "temperature_step_size": 1e-3,
        "entropy_per_action": -1,
    },
    "sb3": {
        "replay_ratio": 1,
        "random_steps": 100,
        "critics": 2,
        "layer_norm": False,
        "initialization": "torch",
        "log_deviation": (-20, 2),
        "bounded_by": "clamp",
        "entropy_per_action": -1,
        "temperature_loss": "logarithm",
    },
}
PAPER = {
    "replay_ratio": 16,
    "random_steps": 10_000,
    "capacity": 1_000_000,
    "batch_size": 256,
    "hidden": (256, 256),
    "critics": 1,
    "layer_norm": True,
    "initialization": "orthogonal",
    "log_deviation": (-10, 2),
    "bounded_by": "tanh",
    "actor_step_size": 3e-4,
    "critic_step_size": 3e-4,
    "temperature_step_size": 3e-4,
    "discount": 0.99,
    "averaging": 0.005,
    "temperature": 1,
    "entropy_per_action": -0.5,
    "temperature_loss": "temperature",
}


@pytest.mark.parametrize("name", LISTED)
def test_a_preset_differs_in_what_is_listed_and_nothing_else(name):
    assert dataclasses.asdict(Constants(**PRESETS[name])) == PAPER | LISTED[name]
    assert all(PAPER[key] != value for key, value in PRESETS[name].items()), "a change that changes nothing"


def test_every_preset_is_listed_and_has_a_source():
    assert PRESETS.keys() == LISTED.keys()


def test_the_heads_of_the_actor_begin_orthogonal_with_gains_of_their_own():
    """The mean's gain is √2, so its rows have a squared length of 2; the log-deviation's is 1."""
    actor = Actor(5, 3, Constants())
    for head, square in ((actor.mean, 2), (actor.log_deviation, 1)):
        torch.testing.assert_close(head.weight @ head.weight.mT, square * torch.eye(3), atol=1e-5, rtol=0)
        assert not head.bias.any()
