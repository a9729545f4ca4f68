"""Checks, before a method is attached, that it can act on an optimizer's steps."""

from typing import Any

from torch.optim import Optimizer

from supple.mitigators.hooks import all_on
from supple.mitigators.kernels import Kernels
from supple.mitigators.optimizers import held_by, inner_optimizers, parameters_in, sizes_by, step_size
from supple.network.find_roles import owned_parameters

_REBUILD = (
    "DAdaptSGD",
    "DAdaptAdaGrad",
    "FTRL",
    "SGDScheduleFreeReference",
    "AdamWScheduleFreeReference",
    "RAdamScheduleFreeReference",
)
"""Optimizers that overwrite the parameters in each step, from sums or averages that they keep."""


def optimizers_to_hook(method: Kernels, optimizer: Any) -> list[Optimizer]:
    """The optimizers inside ``optimizer`` that hold the method's parameters, checked so that the method can attach.

    Raises:
        TypeError: if it is not an optimizer.
        ValueError: if no optimizer holds the method's parameters, if one maximizes or runs no hooks, or if the method
            needs the step size and the optimizer does not give it.
        RuntimeError: if this method, or another of its class for the same parameters, is already attached.
    """
    optimizers, ours = inner_optimizers(optimizer), _identities(method)
    optimizers = [inner for inner in optimizers if held_by(inner) & ours] or optimizers[:1]
    held = set[int]().union(*map(held_by, optimizers))
    for inner in optimizers:
        check_parameters(method, held_by(inner), (parameters_in(optimizer) & ours) - held)
        _check_minimizes(inner)
        check_step_sizes(method, inner)
        _check_master_copies(method, inner)
        _check_company(method, inner)
    return optimizers


def check_held(method: Kernels, optimizer: Optimizer, before: set[int]) -> None:
    """Check again an attached optimizer that held other parameters before: ``before``, by id.

    Parameters may be taken from it, as in training one block of layers after the other. But if it got some that the
    network does not have, these are copies.
    """
    held = held_by(optimizer)
    copies = held - before - {id(parameter) for _, parameter, _ in owned_parameters(method._network)}
    check_parameters(method, held, (before - held) & _identities(method) if copies else set())
    _check_minimizes(optimizer)
    check_step_sizes(method, optimizer)


def _check_minimizes(optimizer: Optimizer) -> None:
    if any(group.get("maximize") for group in optimizer.param_groups):
        raise ValueError("expected an optimizer that minimizes, got maximize=True: minimize the negative instead")


def _identities(method: Kernels) -> set[int]:
    return {id(parameter) for parameter in method.parameters.values()}


def check_parameters(method: Kernels, held: set[int], lost: set[int]) -> None:
    """Check that the optimizer holds the network's parameters, and the ones that the method was built with.

    ``lost`` are parameters that the optimizer was given but does not update itself.
    """
    now = {id(parameter): name for name, parameter, _ in owned_parameters(method._network)}
    known = {id(parameter): name for name, parameter in method._known.items()}
    for changed, verb in (((held & now.keys()) - known.keys(), "new"), ((held & known.keys()) - now.keys(), "gone")):
        if changed:
            name = min((now | known)[parameter] for parameter in changed)
            raise ValueError(
                f"expected the parameters that this {type(method).__name__} was built with, got {name!r}, which is "
                f"{verb} in the network: build method and optimizer after all changes of parameters "
                "(new layers, parametrizations, adapters, to_empty(), load_state_dict(assign=True), sharding)"
            )
    if lost or not held & _identities(method):
        what = (
            f"that holds none of them{' any more' if lost else ''}"
            if not held & _identities(method)
            else f"whose inner optimizer lacks {min(name for name, p in method.parameters.items() if id(p) in lost)!r}"
        )
        raise ValueError(
            f"expected an optimizer of this network's parameters, got one {what}: build the optimizer from the same "
            "network's parameters(). An optimizer that updates copies of them (float32 master weights or flat "
            "partitions, as in DeepSpeed, Megatron and Apex), or wraps another and updates some itself, does not show "
            "what it updates: there, add penalty().sum() to the loss instead"
        )


def check_step_sizes(method: Kernels, optimizer: Optimizer) -> None:
    """Check that the optimizer gives its step size, if the method needs it."""
    if not method.needs_step_sizes:
        return
    sizes = sizes_by(step_size, optimizer)
    for name, parameter in method.parameters.items():
        if id(parameter) in sizes and sizes[id(parameter)] is None:
            raise ValueError(
                f"expected a step size (lr) for {name!r}, got an optimizer without one ({type(optimizer).__name__}): "
                "give it a fixed lr (Adafactor: lr=..., relative_step=False), or choose the form of the method that "
                "acts on gradients (such as decoupled=False)"
            )


def _check_master_copies(method: Kernels, optimizer: Optimizer) -> None:
    """Refuse optimizers that overwrite parameters from float32 copies (Apex, Transformer Engine) or from averages.

    They are recognized by name and attributes, because the copies may not exist before the first step.
    """
    has_copies = (
        getattr(optimizer, "master_weights", False) is True
        or bool(parameters_in(getattr(optimizer, "param_groups_master", None)))
        or hasattr(optimizer, "param_groups_full_precision")
        or type(optimizer).__name__ in _REBUILD
    )
    if has_copies and method.acts_on_parameters:
        raise ValueError(
            f"expected an optimizer that updates the parameters themselves, got a {type(optimizer).__name__}, which "
            f"computes them from its own copies and would overwrite what {type(method).__name__} does after a "
            "step: switch its master weights off, or choose the form of the method that acts on gradients (such as "
            "decoupled=False)"
        )
    if "buckets" in optimizer.state:  # Apex' DistributedFusedAdam
        raise ValueError(
            f"expected an optimizer that reads the parameters' .grad, got a {type(optimizer).__name__}, which keeps "
            "gradients in buffers of its own: add penalty().sum() to the loss instead"
        )


def _check_company(method: Kernels, optimizer: Optimizer) -> None:
    """Check that neither this method nor another of its class already acts on these parameters."""
    for hooks in all_on(optimizer):
        if hooks.owner is method:
            raise RuntimeError(
                "expected an optimizer that it is not attached to yet, got the same one twice: call detach() first"
            )
        common = _identities(hooks.owner) & _identities(method) & held_by(optimizer)
        if type(hooks.owner) is type(method) and common:
            raise RuntimeError(
                f"expected one {type(method).__name__} for these parameters on an optimizer, got a second, which "
                "would add to the first: detach() that one, or change its strength"
            )
