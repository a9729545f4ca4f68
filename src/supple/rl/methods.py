"""The methods by name, as they are put on actor and critic; and resets of the whole agent."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from supple.mitigators import (
    UPGD,
    ContinualBackprop,
    HareAndTortoise,
    L2InitRegularizer,
    L2Regularizer,
    Mitigator,
    ParsevalRegularizer,
    ReDo,
    SelfNormalizedResets,
    ShrinkAndPerturb,
    SpectralNormRegularizer,
    SpectralRegularizer,
    StreamingEWC,
    WassersteinRegularizer,
    WeightClipping,
)
from supple.mitigators.unit_resets import UnitResets
from supple.population import Population
from supple.rl.networks import layers_of
from supple.rl.presets import Constants
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
                learner.draw_anew(names, generators)
                if "optimizer" in self.parts:
                    learner.forget(names)
        if "target" in self.parts:
            for name in names:  # the critic's, the last
                agent.target[name].copy_(agent.critic.parameters[name])
        if "temperature" in self.parts:
            agent.temperature["logarithm"].fill_(math.log(agent.constants.temperature))
            if "optimizer" in self.parts:
                for moment in agent.temperature_moments["logarithm"].values():
                    moment.zero_()


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way of keeping an agent plastic."""

    summary: str
    mitigator: type[Mitigator] = Mitigator
    """Put on actor and critic; the default does nothing."""
    options: Mapping[str, Any] = field(default_factory=dict)
    strength: float = 0.0
    """The default."""
    resets: Resets | None = None

    def put_on(self, population: Population, strength: float, constants: Constants) -> Mitigator:
        """The mitigator of an agent's actors, or critics; what it draws anew is drawn as the networks were."""
        options = dict(self.options)
        if issubclass(self.mitigator, UnitResets) and constants.initialization == "orthogonal":
            options["initializer"] = _orthogonal
        return self.mitigator(population, strength, **options)


def _orthogonal(rows: Tensor, generator: torch.Generator) -> None:
    """Incoming weights of hidden units ``(k, …)``, as :class:`supple.rl.networks.OrthogonalLinear` starts with them."""
    nn.init.orthogonal_(rows, math.sqrt(2), generator=generator)


def _of(mitigator: type[Mitigator], summary: str, strength: float, **options: Any) -> Method:
    return Method(summary=summary, mitigator=mitigator, strength=strength, options=options)


METHODS: dict[str, Method] = {
    "none": Method(summary="no mitigation besides what the preset has (LayerNorm in the paper's)"),
    "resets": Method(summary="now and then the whole agent drawn anew, its buffer kept", resets=Resets()),
    "spectral": _of(SpectralRegularizer, "each layer's largest singular value towards one", 1e-4),
    "decoupled-spectral": _of(SpectralRegularizer, "the same, applied after the optimizer's step", 1.0, decoupled=True),
    "spectral-norm": _of(SpectralNormRegularizer, "each layer's largest singular value towards zero", 1e-4),
    "l2": _of(L2Regularizer, "parameters towards zero", 1e-4),
    "l2-init": _of(L2InitRegularizer, "parameters towards their initial values", 1e-4),
    "wasserstein": _of(WassersteinRegularizer, "the distribution of values towards the initial one", 1e-4),
    "parseval": _of(ParsevalRegularizer, "every singular value of hidden weights towards one", 1e-4),
    "streaming-ewc": _of(StreamingEWC, "important weights near their moving average", 1e-2),
    "shrink-and-perturb": _of(ShrinkAndPerturb, "each step a little towards a fresh initialisation", 1e-4),
    "weight-clipping": _of(WeightClipping, "weights clamped to about the range of their initialisation", 1.0),
    "hare-and-tortoise": _of(HareAndTortoise, "set back every 1,000 updates to a slow average", 1.0),
    "upgd": _of(UPGD, "useful weights move little, the others are perturbed", 1.0),
    "redo": _of(ReDo, "every 1,000 updates, dormant units drawn anew", 0.1),
    "continual-backprop": _of(ContinualBackprop, "each update a few of the least useful units drawn anew", 1e-4),
    "self-normalized-resets": _of(SelfNormalizedResets, "units silent for longer than they used to be", 0.02),
}
