"""Resets of the whole agent, which keep its replay buffer."""

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
    """When an agent is reset, and which parts; every reset uses new random numbers.

    Source: Nikishin et al., *The Primacy Bias in Deep Reinforcement Learning*, 2022; D'Oro et al., 2023, whose schedule
    is the default.
    """

    every: int = 2_560_000
    """The period; a reset follows the first evaluation after each full period."""
    unit: Literal["updates", "steps"] = "updates"
    """The unit of ``every``: updates of the agent, or steps of the environment."""
    parts: tuple[Part, ...] = PARTS
    """``optimizer`` is the optimizer state of those parts among actor, critic and temperature that are reset. The
    target becomes a copy of the critic. With ``buffer`` (not in the default), updates wait until it is refilled."""
    layers: int | None = None
    """How many of the last layers of actor, critic and target; the heads count as one layer. All when left out."""

    def __post_init__(self) -> None:
        if self.every < 1 or (self.layers is not None and self.layers < 1):
            raise ValueError(
                f"expected a period of at least 1 and at least 1 layer, got every={self.every}, layers={self.layers}: "
                "choose larger ones"
            )
        if unknown := set(self.parts) - {*PARTS, "buffer"}:
            raise ValueError(
                f"expected parts among {', '.join(PARTS)} and buffer, got {', '.join(sorted(unknown))}: correct it"
            )
        if set(self.parts) <= {"optimizer"}:
            raise ValueError(
                "expected a part to reset besides the optimizer's state, got "
                f"{' '.join(self.parts) or 'none'}: name some of {', '.join(PARTS)} and buffer"
            )

    def periods(self, steps: int, updates: int) -> int:
        """The number of full periods after these steps and updates."""
        return (steps if self.unit == "steps" else updates) // self.every

    def reset(self, agent: SAC, generators: Sequence[torch.Generator]) -> None:
        """Reset the parts of the agent; actors and critics are reinitialized with one generator per member."""
        for part, learner in (("actor", agent.actor), ("critic", agent.critic)):
            layers = layers_of(learner.population.stacked)
            names = [name for layer in (layers[-self.layers :] if self.layers else layers) for name in layer]
            if part in self.parts:
                learner.reinitialize(names, generators)
                if "optimizer" in self.parts:
                    learner.clear_moments(names)
        if "target" in self.parts:
            for name in names:  # the critic's, from the last iteration above
                agent.target[name].copy_(agent.critic.parameters[name])
        if "temperature" in self.parts:
            agent.temperature["logarithm"].fill_(math.log(agent.constants.temperature))
            if "optimizer" in self.parts:
                for moment in agent.temperature_moments["logarithm"].values():
                    moment.zero_()
