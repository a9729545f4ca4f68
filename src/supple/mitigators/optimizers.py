"""What an optimizer holds: the optimizers that it wraps, its parameters, its step sizes and its state."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

StepSize = float | Tensor

_BY_HAND = "call method.before_step() before the parameters move and method.after_step(optimizer) afterwards instead"
_METHODS = ("step", "zero_grad")
"""Anything with these methods counts as an optimizer."""


def inner_optimizers(optimizer: Any) -> list[Optimizer]:
    """The optimizers whose ``step()`` updates the parameters, inside those that wrap them (Lookahead, SAM, ...).

    An optimizer that wraps no other returns itself; a container may hold several, one for each part of a network.

    Raises:
        TypeError: if it neither is nor holds an optimizer.
        ValueError: for an optimizer whose ``step`` has no hooks.
    """
    innermost = _inside(optimizer, set())
    if not innermost:
        raise TypeError(f"expected a torch.optim.Optimizer, got {type(optimizer).__name__}: attach to each optimizer")
    for inner in innermost:
        if not getattr(type(inner).step, "hooked", False) or not hasattr(inner, "_optimizer_step_post_hooks"):
            raise ValueError(
                f"expected an optimizer that runs its step hooks, got {type(inner).__name__}, whose __init__ does not "
                f"call super().__init__(): {_BY_HAND}"
            )
        if hasattr(inner, "first_step") and hasattr(inner, "second_step"):
            raise ValueError(
                f"expected an optimizer that updates parameters in step(), got {type(inner).__name__}, which does so "
                f"in second_step() and wraps no other optimizer: {_BY_HAND}"
            )
    return innermost


def memory_of(optimizer: Optimizer, parameter: Tensor) -> dict[str, Any]:
    """The optimizer's own state dictionary for a parameter; if ranks share the state, this rank's part."""
    inner = getattr(optimizer, "optim", optimizer)
    held: dict[str, Any] = optimizer.state.get(parameter) or getattr(inner, "state", {}).get(parameter, {})
    return held


def step_size(group: Mapping[str, Any]) -> StepSize | None:
    """The step size of a parameter group, or None if it is not known.

    Prodigy and D-Adaptation multiply ``lr`` by the ``d`` that they estimate; Adafactor may have no step size.
    """
    lr: StepSize | None = group.get("lr")
    if lr is None or "d" not in group or "beta2_decay" in group:  # torch's Adafactor has another d
        return lr
    estimate: StepSize = group["d"]
    return lr * estimate


def largest_step_size(group: Mapping[str, Any]) -> StepSize | None:
    """The step size of a parameter group, or the largest that torch's schedulers have noted there, if larger."""
    lr: StepSize | None = group.get("lr")
    for noted in ("initial_lr", "max_lr"):
        if lr is not None and (other := group.get(noted)) is not None:
            lr = lr.clamp_min(other) if isinstance(lr, Tensor) else max(lr, other)
    return step_size({**group, "lr": lr})


def reach(group: Mapping[str, Any]) -> StepSize | None:
    """How far a gradient of 1 moves a parameter in total: step size / (1 − momentum), at most 1,000 step sizes.

    The step size is the largest of a schedule, because momentum keeps gradients until a warm-up has raised it.
    """
    size, momentum = largest_step_size(group), group.get("momentum", 0.0)
    return size if size is None or not momentum else size / max(1 - momentum, 1e-3)


def held_by(optimizer: Optimizer) -> set[int]:
    """The ids of an optimizer's parameters."""
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def sizes_by(size_of: Callable[[dict[str, Any]], StepSize | None], optimizer: Optimizer) -> dict[int, StepSize | None]:
    """``size_of(group)`` for each of an optimizer's parameters, by the parameter's id."""
    return {
        id(parameter): size
        for group in optimizer.param_groups
        for size in [size_of(group)]
        for parameter in group["params"]
    }


def largest_step_sizes(optimizer: Optimizer) -> dict[int, float]:
    """The step sizes, or the largest ones of a schedule, since a warm-up begins at 0; 0 if they are not known."""
    sizes = sizes_by(largest_step_size, optimizer)
    return {key: 0.0 if size is None else float(size) for key, size in sizes.items()}


def searches_lines(optimizer: Optimizer) -> bool:
    """Whether it evaluates the loss at several points of a step, as L-BFGS does."""
    return any("max_iter" in group for group in optimizer.param_groups)


def may_compare_losses(optimizer: Optimizer) -> bool:
    """Whether it may use the value that a closure returns; of torch's own optimizers only L-BFGS does."""
    return searches_lines(optimizer) or not _runs_torchs_step(optimizer)


def steps_under_way(optimizer: Optimizer) -> int:
    """How many of torch's wrappers around this optimizer's ``step`` are on the call stack."""
    count, frame = 0, inspect.currentframe()
    while frame is not None:
        code = frame.f_code
        is_wrapper = code.co_name == "wrapper" and "profile_hook_step" in code.co_qualname
        count += is_wrapper and frame.f_locals.get("self") is optimizer
        frame = frame.f_back
    return count


def _inside(optimizer: Any, seen: set[int]) -> list[Optimizer]:
    """The innermost optimizers, each once; empty if it is not an optimizer."""
    if id(optimizer) in seen or not (isinstance(optimizer, Optimizer) or _is_like_one(optimizer)):
        return []
    seen.add(id(optimizer))
    if type(optimizer).__name__ == "ZeroRedundancyOptimizer":
        return [optimizer]  # the inner one holds only this rank's part; after the step all ranks have all parameters
    if _runs_torchs_step(optimizer):
        return [optimizer]  # torch's own step updates its parameters, whatever attributes it has
    held: list[Any] = []
    slots = (name for kind in type(optimizer).__mro__ for name in getattr(kind, "__slots__", ()))
    for value in [*getattr(optimizer, "__dict__", {}).values(), *(getattr(optimizer, name, None) for name in slots)]:
        held += value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
    inner = [innermost for value in held for innermost in _inside(value, seen)]
    return inner or ([optimizer] if isinstance(optimizer, Optimizer) else [])


def parameters_in(value: Any, depth: int = 4) -> set[int]:
    """The ids of all tensors in an object's attributes, or in nested lists and dictionaries."""
    if isinstance(value, Tensor):
        return {id(value)}
    if not isinstance(value, list | tuple | dict):
        value = vars(value) if hasattr(value, "__dict__") and depth == 4 else ()
    inner = value.values() if isinstance(value, dict) else value
    return set[int]().union(*(parameters_in(item, depth - 1) for item in inner)) if depth else set()


def _is_like_one(value: Any) -> bool:
    """Whether it behaves like an optimizer: some wrappers, such as schedule-free's, do not subclass torch's."""
    return all(hasattr(type(value), name) or name in getattr(value, "__dict__", {}) for name in _METHODS)


def _runs_torchs_step(optimizer: Any) -> bool:
    module = getattr(type(optimizer).step, "__module__", "") or ""
    return module.startswith("torch.optim.") and module != Optimizer.__module__
