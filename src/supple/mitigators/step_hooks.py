"""A method's place on an optimizer: what it does when that optimizer takes a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from supple.power_iteration import without_autocast
from supple.roles import owned_parameters
from supple.sharding import is_sharded, lay_out_gradient

if TYPE_CHECKING:
    from supple.mitigators.base import Mitigator, Tensors


class StepHooks:
    """The hooks of one method on one optimizer, until :meth:`remove`."""

    def __init__(self, mitigator: Mitigator, optimizer: Optimizer) -> None:
        self.mitigator, self.optimizer = mitigator, optimizer
        self._held = held_by(optimizer)
        self._handles = []
        if mitigator.acts_on_gradients:
            self._handles.append(optimizer.register_step_pre_hook(self._on_step_start))
        if mitigator.acts_on_parameters:
            self._handles.append(optimizer.register_step_post_hook(self._on_step_end))

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _on_step_start(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)  # args[0] is the optimizer itself
        if closure is not None:
            # The gradients come to be inside the step, each time that the optimizer calls the closure.
            return args[:1], {**kwargs, "closure": self._regularized(closure)}
        with torch.no_grad():
            # Set by torch.amp.GradScaler for fused optimizers, whose gradients are still scaled at this point.
            scaling = getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None)
            add_gradients(self.mitigator, self._parameters(), *scaling)
        return None

    def _on_step_end(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        with torch.no_grad():
            self.mitigator._act_after_step(optimizer, self._parameters())

    def _regularized(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        def with_penalty() -> Any:
            loss = closure()
            parameters = self._parameters()
            with torch.no_grad():
                if loss is not None:
                    with without_autocast(self.mitigator._first):
                        penalty = self.mitigator._penalty(self.mitigator._here(parameters))
                    loss = loss + (self.mitigator.strength * penalty).sum()
                add_gradients(self.mitigator, parameters)
            return loss

        return with_penalty

    def _parameters(self) -> Tensors:
        held = held_by(self.optimizer)
        if held != self._held:  # a parameter group was added
            _check_parameters(self.mitigator, held)
            self._held = held
        return self.mitigator._select(held)


def add_gradients(
    mitigator: Mitigator, parameters: Tensors, grad_scale: Tensor | None = None, found_inf: Tensor | None = None
) -> None:
    """Add the method's gradient to each parameter's ``.grad``, which may be multiplied by a ``grad_scale``."""
    if not mitigator.acts_on_gradients:
        return
    for name, parameter in parameters.items():
        if parameter.grad is not None and parameter.grad.is_sparse:
            raise ValueError(
                f"expected a dense gradient, got a sparse one for {name!r}: build its embedding with sparse=False, "
                f"or leave it out with roles={{{name!r}: None}}"
            )
    for parameter in parameters.values():
        # Switched off, the method gives no gradient to what has none: the optimizer goes on leaving it alone.
        if parameter.grad is None and (isinstance(mitigator.strength, Tensor) or mitigator.strength > 0):
            parameter.grad = torch.zeros_like(parameter)
        if mitigator._pieces and is_sharded(parameter):
            lay_out_gradient(parameter)
    gradients = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
    if not gradients:
        return
    parameters, gradients = mitigator._here(parameters), mitigator._here(gradients)
    if grad_scale is not None:  # a power of two: undone and redone without rounding
        torch._foreach_div_(list(gradients.values()), grad_scale)
    if found_inf is not None:  # the optimizer will skip this step; what is remembered must not keep its infinities
        for gradient in gradients.values():
            gradient.masked_fill_(found_inf.bool(), 0)
    acted_on = {name: parameters[name] for name in gradients}
    with without_autocast(mitigator._first):
        mitigator.add_gradients(acted_on, gradients, mitigator._state_here(), mitigator.strength)
    if grad_scale is not None:
        torch._foreach_mul_(list(gradients.values()), grad_scale)


def check_fit(mitigator: Mitigator, optimizer: Optimizer) -> None:
    """Make sure that the method may act on the optimizer's steps.

    Raises:
        ValueError: when the optimizer does not hold the parameters that the method knows, or maximizes.
        RuntimeError: when this method is on the optimizer already, or another of its kind for the same parameters.
    """
    _check_parameters(mitigator, held_by(optimizer))
    if any(group.get("maximize") for group in optimizer.param_groups):
        raise ValueError("expected an optimizer that minimizes, got maximize=True: minimize the negative instead")
    _check_company(mitigator, optimizer)


def held_by(optimizer: Optimizer) -> set[int]:
    """The identities of an optimizer's parameters."""
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def _check_parameters(mitigator: Mitigator, held: set[int]) -> None:
    """Make sure that the optimizer's parameters are the network's, and those that the method was built with."""
    now = {id(parameter): name for name, parameter, _ in owned_parameters(mitigator._network)}
    known = {id(parameter): name for name, parameter in mitigator._known.items()}
    for changed, verb in (((held & now.keys()) - known.keys(), "new"), ((held & known.keys()) - now.keys(), "gone")):
        if changed:
            name = min((now | known)[parameter] for parameter in changed)
            raise ValueError(
                f"expected the parameters that this {type(mitigator).__name__} was built with, got {name!r}, which is "
                f"{verb} in the network: build method and optimizer when nothing adds or replaces parameters any more "
                "(new layers, parametrizations, adapters, to_empty(), load_state_dict(assign=True), sharding)"
            )
    if not any(id(parameter) in held for parameter in mitigator.parameters.values()):
        raise ValueError(
            "expected an optimizer of this network's parameters, got one that holds none of them: build the "
            "optimizer from the same network's parameters()"
        )


def _check_company(mitigator: Mitigator, optimizer: Optimizer) -> None:
    """Make sure that nothing on the optimizer does the same already."""
    hooks = [*optimizer._optimizer_step_pre_hooks.values(), *optimizer._optimizer_step_post_hooks.values()]
    for owner in (getattr(hook, "__self__", None) for hook in hooks):
        if not isinstance(owner, StepHooks):
            continue
        if owner.mitigator is mitigator:
            raise RuntimeError("expected an optimizer not attached to yet, got the same one twice: detach() first")
        theirs = {id(parameter) for parameter in owner.mitigator.parameters.values()}
        ours = {id(parameter) for parameter in mitigator.parameters.values()}
        if type(owner.mitigator) is type(mitigator) and theirs & ours & held_by(optimizer):
            raise RuntimeError(
                f"expected one {type(mitigator).__name__} of these parameters on an optimizer, got a second, which "
                "would add to the first: detach() that one, or change its strength"
            )
