"""Hooks on an optimizer's step: they call functions before and after it updates the parameters."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from supple.kernels.sharding import local
from supple.mitigators.optimizers import steps_under_way

Add = Callable[[Tensor | None, Tensor | None], bool]
"""Adds to the gradients, given GradScaler's scale and ``found_inf`` (or None); returns whether there were gradients."""


class _Writes(NamedTuple):
    """The optimizer's first gradient and its number of writes: shows whether gradients are new since a failed step."""

    gradient: Tensor
    writes: int

    @classmethod
    def of(cls, optimizer: Optimizer) -> _Writes | None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if (gradient := parameter.grad) is not None:
                    return cls(gradient, 0 if gradient.is_inference() else local(gradient)._version)
        return None

    def same_as(self, others: _Writes | None) -> bool:
        return others is not None and others.gradient is self.gradient and others.writes == self.writes


class OutermostStep:
    """Recognizes the outermost of nested steps: where ``step()`` calls ``super().step()``, hooks run twice."""

    def __init__(self) -> None:
        self._depth = 0

    def begins(self, optimizer: Optimizer) -> bool:
        """Count the beginning of a step; whether it is inside no other."""
        if self._depth:
            self._depth = steps_under_way(optimizer) - 1  # smaller than the count if an earlier step raised an error
        self._depth += 1
        return self._depth == 1

    def ends(self) -> bool:
        """Count the end of a step; whether it was inside no other."""
        self._depth -= 1
        return not self._depth


class StepHooks:
    """The hooks of one method on one optimizer, until :meth:`remove`.

    Args:
        owner: the method; only stored, so that others can ask whose hooks these are.
        optimizer: the optimizer to hook.
        add: adds to the gradients before a step, and returns whether there were any; None adds nothing.
        term: returns what is added to a closure's loss; None adds nothing, for an optimizer that does not compare
            losses.
        change: changes the parameters after a step, and returns whether it did; None changes nothing.
        steps: the number of earlier steps in which it acted.
    """

    def __init__(
        self,
        owner: Any,
        optimizer: Optimizer,
        *,
        add: Add | None,
        term: Callable[[], Tensor] | None,
        change: Callable[[], bool] | None,
        steps: int = 0,
    ) -> None:
        self.owner, self.optimizer, self.steps = owner, optimizer, steps
        self._add, self._term, self._change = add, term, change
        self._outermost, self._acts, self._is_retry = OutermostStep(), False, False
        self._had_gradients = self._has_warned = False
        self._added: _Writes | None = None
        self._handles = [
            optimizer.register_step_pre_hook(self._on_step_start),
            optimizer.register_step_post_hook(self._on_step_end),
        ]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _on_step_start(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not self._outermost.begins(optimizer):
            return None
        compiling = torch.compiler.is_compiling()
        self._had_gradients = self._change is not None and not compiling and _Writes.of(optimizer) is not None
        if self._add is None:
            return None
        self._is_retry = self._added is not None
        # args[0] is the optimizer itself. With a closure the gradients are computed inside the step, whenever the
        # optimizer calls the closure.
        if callable(closure := kwargs.get("closure")):
            return args, {**kwargs, "closure": self._regularized(closure)}
        if len(args) > 1 and callable(args[1]):
            return (args[0], self._regularized(args[1]), *args[2:]), kwargs
        # Set by torch.amp.GradScaler for fused optimizers, whose gradients are still scaled at this point.
        self._acts = self._add_once(getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None))
        return None

    def _on_step_end(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._outermost.ends():
            return
        self._added = None
        if self._change is not None:
            self._acts = self._change()
            if self._had_gradients and not self._acts and not self._has_warned and _Writes.of(optimizer) is None:
                self._has_warned = True
                warnings.warn(
                    f"expected gradients after the step, got none: {type(self.owner).__name__} changed nothing, since "
                    f"it cannot tell which parameters {type(optimizer).__name__} updated before it cleared them. Call "
                    "zero_grad() after the step instead",
                    stacklevel=2,
                )
        if not torch.compiler.is_compiling():  # a changing count would cause a recompilation in every step
            self.steps += self._acts

    def _regularized(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        def with_penalty() -> Any:
            loss = closure()
            if loss is not None and self._term is not None:
                loss = loss + self._term()
            self._acts = self._add_once(None, None)
            return loss

        return with_penalty

    def _add_once(self, grad_scale: Tensor | None, found_inf: Tensor | None) -> bool:
        """Add, unless this is a repeated step after an error and the gradients still hold what was added before."""
        assert self._add is not None
        if torch.compiler.is_compiling():
            return self._add(grad_scale, found_inf)
        before, is_retry = _Writes.of(self.optimizer), self._is_retry
        self._is_retry = False  # an optimizer may call its closure again
        if is_retry and before is not None and before.same_as(self._added):
            return True
        acts = self._add(grad_scale, found_inf)
        if acts:
            for hooks in all_on(self.optimizer):  # the gradients still hold what other methods added
                if hooks is self or (before is not None and before.same_as(hooks._added)):
                    hooks._added = _Writes.of(self.optimizer)
        return acts


def all_on(optimizer: Optimizer) -> list[StepHooks]:
    """The hooks of all methods on an optimizer, in the order in which they act."""
    hooks: Sequence[Any] = [*optimizer._optimizer_step_post_hooks.values()]
    owners = (getattr(hook, "__self__", None) for hook in hooks)
    return [owner for owner in owners if isinstance(owner, StepHooks)]
