"""The methods for agents: those of the table that do not change the architecture, and resets of the whole agent."""

import inspect
from collections.abc import Mapping
from typing import Any

from supple.mitigators import HareAndTortoise, Mitigator
from supple.mitigators.unit_resets import UnitResets
from supple.network.population import Population
from supple.rl.networks import layers_of
from supple.training import methods
from supple.training.methods import Method

RESETS = "resets"
METHODS: dict[str, Method] = {
    name: method
    for name, method in methods.METHODS.items()
    # "resets" resets the whole agent, so network-reset is left out; FIRE acts between tasks, and an agent has none.
    if not method.network and name not in ("network-reset", "fire")
} | {
    RESETS: Method(
        title="resets",
        summary="the whole agent is reinitialized at intervals, and its buffer kept",
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


def check_exempt_heads(name: str, method: Method) -> None:
    """Check that the method can leave out the heads.

    Raises:
        ValueError: for a method that does not act layer by layer, or a class without the argument ``roles``.
    """
    kind = method.mitigator  # a class, or a function that builds a mitigator
    is_whole = kind is Mitigator or (isinstance(kind, type) and issubclass(kind, UnitResets | HareAndTortoise))
    if is_whole or "roles" not in inspect.signature(kind).parameters:
        raise ValueError(
            f"expected a method that acts layer by layer with exempt heads, got {name}: leave --exempt-heads out, or "
            "choose a method such as spectral"
        )


def mitigator_for(
    method: Method,
    population: Population,
    strength: float,
    options: Mapping[str, Any],
    exempt_heads: bool,
) -> Mitigator:
    """The method's mitigator on all actors or all critics.

    Raises:
        ValueError: for a method that acts only between tasks: an agent has none.
    """
    given = dict(options)
    if exempt_heads:
        given["roles"] = dict.fromkeys(layers_of(population.stacked)[-1])
    mitigator = method.on(population, strength, **given)
    if mitigator.acts_at_task_start:
        raise ValueError(
            f"expected a method that acts in steps, got {method.title}, which acts between tasks: choose another "
            "method or variant, because agents have no tasks"
        )
    return mitigator
