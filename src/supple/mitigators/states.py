"""Checks that a loaded state fits a method, entry by entry, before anything changes."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from supple.kernels.sharding import is_sharded

Tensors = dict[str, Tensor]
State = dict[str, Tensors]
"""What a method keeps between steps: for each parameter's name, named tensors."""
GLOBAL = ""
"""The key of a state for values that belong to no single parameter; they stay on the host."""
ROUNDING = "rounding steps"
"""The key in that entry for the number of steps with stochastic rounding; absent if there were none."""


def check_state(state: Any, mine: State, options: Mapping[str, float], kind: str) -> None:
    """Check that ``state`` is from a method of class ``kind`` with these options, and has the shapes of ``mine``.

    Raises:
        TypeError: if an entry is not a tensor or has another type; the message names the first one.
        ValueError: if an option differs, or an entry is missing, unknown or has another shape; the message names the
            first one.
    """
    check_tensors(state, mine, kind)
    for option, value in options.items():
        other = state.get(GLOBAL, {}).get(option)
        if other is None or other.ndim or float(other) != value:
            raise ValueError(
                f"expected the state of a {kind} with {_shown(option, value)}, got one with "
                f"{_shown(option, other)}: load it into a method with the same options"
            )
    expected, shapes = ({f"{GLOBAL}/{ROUNDING}": ()} | _shapes(entries) for entries in (mine, state))
    for entry in sorted(expected.keys() | shapes.keys()):
        if expected.get(entry) != shapes.get(entry):
            raise ValueError(
                f"expected a state with {entry} of shape {expected.get(entry)}, got {shapes.get(entry)}: "
                f"load it into a {kind} with the same options on the same architecture"
            )


def set_random(generator: torch.Generator, state: Tensor) -> None:
    """Set a generator's state.

    Raises:
        ValueError: if torch refuses the state.
    """
    try:
        generator.set_state(state.clone())  # torch crashes on a view into another tensor
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"expected the state of a random generator in {GLOBAL}/random, got one that torch refuses ({error}): load "
            "what state_dict() returned"
        ) from error


def check_tensors(state: Any, mine: State, kind: str) -> None:
    """Check that a state is a dictionary of dictionaries of tensors that can be copied into ``mine``.

    Raises:
        TypeError: if it is not; the message names the first wrong entry.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"expected the state_dict() of a {kind}, got {type(state).__name__}: load what it returned")
    for name, entry in state.items():
        if not isinstance(entry, Mapping):
            raise TypeError(
                f"expected a dictionary of tensors for {name!r} in the state of a {kind}, got {type(entry).__name__}: "
                "load what its state_dict() returned"
            )
        for key, tensor in entry.items():
            own, given = mine.get(name, {}).get(key), type(tensor).__name__
            if isinstance(tensor, Tensor):
                if _fits(tensor, own):
                    continue
                given = f"a {given} of {tensor.dtype}, {tensor.layout}, on {tensor.device}"
            raise TypeError(
                f"expected a plain tensor{'' if own is None else f' of {own.dtype}'} for {name}/{key} in the state of "
                f"a {kind}, got {given}: load what its state_dict() returned"
            )


def _fits(tensor: Tensor, own: Tensor | None) -> bool:
    """Whether it is a plain tensor of a type that can be copied into ``own``, and is sharded only if ``own`` is."""
    is_plain = tensor.layout == torch.strided and not (tensor.is_nested or tensor.is_meta or tensor.is_quantized)
    if not is_plain or own is None:
        return is_plain
    return torch.can_cast(tensor.dtype, own.dtype) and (is_sharded(own) or not is_sharded(tensor))


def _shown(option: str, value: Tensor | float | None) -> str:
    if value is None:
        return f"no {option}"
    if isinstance(value, Tensor) and value.ndim:
        return f"{option} of shape {tuple(value.shape)}"
    return f"{option} 'initial'" if option == "target" and value < 0 else f"{option} {float(value):g}"


def _shapes(state: State) -> dict[str, tuple[int, ...]]:
    return {f"{name}/{key}": tuple(tensor.shape) for name, entry in state.items() for key, tensor in entry.items()}
