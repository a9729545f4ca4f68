"""Resets of the whole agent, its replay buffer kept."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from supple.rl.networks import layers_of
from supple.rl.sac import SAC

Part = Literal["actor", "critic", "target", "temperature", "optimizer", "buffer"]
PARTS: tuple[Part, ...] = ("actor", "critic", "target", "temperature", "optimizer")


@dataclass(frozen=True, kw_only=True)
class Resets:
    """When, and what of an agent, starts anew: each time with other random numbers.

    Source: Nikishin et al., *The Primacy Bias in Deep Reinforcement Learning*, 2022; D'Oro et al., 2023, whose schedule
    is the default.
    """

    every: int = 2_560_000
    """The period; a reset comes after the first evaluation at the end of which one has passed."""
    unit: Literal["updates", "steps"] = "updates"
    """What is counted: updates of the agent, or steps of the environment."""
    parts: tuple[Part, ...] = PARTS
    """``optimizer`` is the memory of those that are reset among actor, critic and temperature. The target becomes a
    copy of the critic. With ``buffer``, which is kept by default, updates wait until it is filled anew."""
    layers: int | None = None
    """How many of the last layers of actor, critic and target, the heads being one; all when left out."""

    def __post_init__(self) -> None:
        if self.every < 1 or (self.layers is not None and self.layers < 1):
            raise ValueError(f"expected a reset of 1 or more layers every 1 or more {self.unit}, got {self}")
        if unknown := set(self.parts) - {*PARTS, "buffer"}:
            raise ValueError(f"expected parts among {', '.join(PARTS)} and buffer, got {', '.join(sorted(unknown))}")
        if set(self.parts) <= {"optimizer"}:
            raise ValueError(
                "expected parts to reset, of which the optimizer is only the memory, got "
                f"{' '.join(self.parts) or 'none'}: name some among {', '.join(PARTS)} and buffer"
            )

    def periods(self, steps: int, updates: int) -> int:
        """How many have passed after so many steps and updates."""
        return (steps if self.unit == "steps" else updates) // self.every

    def reset(self, agent: SAC, generators: Sequence[torch.Generator]) -> None:
        """Draw the parts of the agent anew: actors and critics from one generator a member."""
        for part, learner in (("actor", agent.actor), ("critic", agent.critic)):
            layers = layers_of(learner.population.stacked)
            names = [name for layer in (layers[-self.layers :] if self.layers else layers) for name in layer]
            if part in self.parts:
                learner.reinitialize(names, generators)
                if "optimizer" in self.parts:
                    learner.clear_moments(names)
        if "target" in self.parts:
            for name in names:  # the critic's, the last
                agent.target[name].copy_(agent.critic.parameters[name])
        if "temperature" in self.parts:
            agent.temperature["logarithm"].fill_(math.log(agent.constants.temperature))
            if "optimizer" in self.parts:
                for moment in agent.temperature_moments["logarithm"].values():
                    moment.zero_()
