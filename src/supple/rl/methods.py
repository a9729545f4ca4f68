"""The methods for agents: those of the table that do not change the architecture, and resets of the whole agent."""

import math

import torch
from torch import Tensor, nn

from supple.mitigators import Mitigator
from supple.mitigators.unit_resets import UnitResets
from supple.network.population import Population
from supple.rl.presets import Constants
from supple.training import methods
from supple.training.methods import Method

RESETS = "resets"
METHODS: dict[str, Method] = {
    name: method
    for name, method in methods.METHODS.items()
    # "resets" resets the whole agent, so network-reset is left out; an agent has no tasks, so FIRE would never act.
    if not method.network and name not in ("network-reset", "fire")
} | {
    RESETS: Method(
        title="resets",
        summary="the whole agent is reinitialized now and then, and its buffer kept",
        colour=methods.METHODS["network-reset"].colour,
    )
}


def find(name: str) -> Method:
    """The method with this name: an entry of ``METHODS``, or ``package.module:Class``, your own mitigator.

    Raises:
        ValueError: for an unknown name, or a class that takes no strength.
    """
    return methods.find(name, METHODS)


def default_strength(method: Method) -> float:
    """The method's default strength on actor and critic."""
    return method.strength if method.control_strength is None else method.control_strength


def mitigator_for(method: Method, population: Population, strength: float, constants: Constants) -> Mitigator:
    """The method's mitigator on all actors or all critics; it reinitializes units as the networks were initialized."""
    is_orthogonal = isinstance(method.mitigator, type) and issubclass(method.mitigator, UnitResets)
    is_orthogonal &= constants.initialization == "orthogonal"
    return method.on(population, strength, **({"initializer": _orthogonal} if is_orthogonal else {}))


def _orthogonal(rows: Tensor, generator: torch.Generator) -> None:
    """Draw the incoming weights of hidden units ``(k, …)`` as :class:`supple.rl.networks.OrthogonalLinear` does."""
    nn.init.orthogonal_(rows, math.sqrt(2), generator=generator)
