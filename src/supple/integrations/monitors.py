"""One monitor, or several by name, as the callbacks of every framework step, save and load them."""

from collections.abc import Mapping
from typing import Any

from supple.diagnostics import PlasticityMonitor
from supple.integrations.loading import load_all

Monitors = PlasticityMonitor | Mapping[str, PlasticityMonitor]
"""One monitor, or several by name."""


def by_name(monitors: Monitors) -> Mapping[str, PlasticityMonitor]:
    """The monitors by name; a single one has the name ``""``.

    Raises:
        TypeError: for anything else.
    """
    named = {"": monitors} if isinstance(monitors, PlasticityMonitor) else monitors
    if not isinstance(named, Mapping) or not named:
        got = type(monitors).__name__ if monitors else repr(monitors)
        raise TypeError(
            f'expected a PlasticityMonitor, or several by name, got {got}: pass {{"actor": monitor, "critic": another}}'
        )
    for name, monitor in named.items():
        if not isinstance(monitor, PlasticityMonitor):
            raise TypeError(
                f"expected a PlasticityMonitor as {name!r}, got {type(monitor).__name__}: build one on each network"
            )
    return named


def step(monitors: Monitors) -> dict[str, float]:
    """Count a step of each; the values of those that measure, named ``<monitor>/<value>`` if monitors have names."""
    return {
        f"{name}/{key}" if name else key: value
        for name, monitor in by_name(monitors).items()
        for key, value in (monitor.step() or {}).items()
    }


def state_dict(monitors: Monitors) -> dict[str, Any]:
    """The states by name, or a single monitor's own."""
    if isinstance(monitors, PlasticityMonitor):
        return monitors.state_dict()
    return {name: monitor.state_dict() for name, monitor in monitors.items()}


def load_state_dict(monitors: Monitors, state: Mapping[str, Any]) -> None:
    """Load what :func:`state_dict` returned.

    Raises:
        ValueError: if it holds the states of other monitors; nothing changes.
    """
    named = by_name(monitors)
    states = {"": state} if isinstance(monitors, PlasticityMonitor) else state
    if states.keys() != named.keys():
        raise ValueError(
            f"expected the states of the monitors {sorted(named)} in the checkpoint, got {sorted(states)}: build the "
            "callback with the monitors that were saved, under their names"
        )
    load_all((monitor, states[name]) for name, monitor in named.items())
