"""A place on an optimizer's step: what is called before the parameters move, and afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from supple.kernels.sharding import local
from supple.mitigators.optimizers import steps_under_way

Add = Callable[[Tensor | None, Tensor | None], bool]
"""Adds to gradients that GradScaler has scaled (by the first), or not; the second is 1 where they are not finite."""


class _Writes(NamedTuple):
    """How often the first of an optimizer's gradients has been written to; it tells these gradients from new ones."""

    gradient: Tensor
    writes: int

    @classmethod
    def so_far(cls, optimizer: Optimizer) -> _Writes | None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if (gradient := parameter.grad) is not None:
                    return cls(gradient, 0 if gradient.is_inference() else local(gradient)._version)
        return None

    def are(self, others: _Writes | None) -> bool:
        return others is not None and others.gradient is self.gradient and others.writes == self.writes


class StepHooks:
    """The hooks of one method on one optimizer, until :meth:`remove`.

    Args:
        owner: the method; only looked at by others who ask whose hooks these are.
        optimizer: the one whose steps count.
        add: adds to the gradients before a step, and tells whether there were any; None adds nothing.
        term: what a closure's loss grows by.
        change: changes the parameters after a step, and tells whether it did; None changes nothing.
        steps: how many steps it has acted in before.
    """

    def __init__(
        self,
        owner: Any,
        optimizer: Optimizer,
        *,
        add: Add | None,
        term: Callable[[], Tensor],
        change: Callable[[], bool] | None,
        steps: int = 0,
    ) -> None:
        self.owner, self.optimizer, self.steps = owner, optimizer, steps
        self._add, self._term, self._change = add, term, change
        self._depth, self._acts, self._is_retry = 0, False, False
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
        # Torch runs the hooks around super().step() too, where a class of one's own calls that within its step().
        if self._depth:
            self._depth = steps_under_way(optimizer) - 1  # fewer where a step ended by an error
        self._depth += 1
        if self._depth > 1 or self._add is None:
            return None
        self._is_retry = self._added is not None
        # args[0] is the optimizer itself. With a closure the gradients come to be inside the step, each time that the
        # optimizer calls it.
        if callable(closure := kwargs.get("closure")):
            return args, {**kwargs, "closure": self._regularized(closure)}
        if len(args) > 1 and callable(args[1]):
            return (args[0], self._regularized(args[1]), *args[2:]), kwargs
        # Set by torch.amp.GradScaler for fused optimizers, whose gradients are still scaled at this point.
        self._acts = self._add_once(getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None))
        return None

    def _on_step_end(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._depth -= 1
        if self._depth:
            return
        self._added = None
        if self._change is not None:
            self._acts = self._change()
        if not torch.compiler.is_compiling():  # a count would make a compiled step be compiled again and again
            self.steps += self._acts

    def _regularized(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        def with_penalty() -> Any:
            loss = closure()
            if loss is not None:
                loss = loss + self._term()
            self._acts = self._add_once(None, None)
            return loss

        return with_penalty

    def _add_once(self, grad_scale: Tensor | None, found_inf: Tensor | None) -> bool:
        """Add, unless it is there already: from a step that ended by an error and is taken once more."""
        assert self._add is not None
        if torch.compiler.is_compiling():
            return self._add(grad_scale, found_inf)
        before, is_retry = _Writes.so_far(self.optimizer), self._is_retry
        self._is_retry = False  # an optimizer may call its closure again
        if is_retry and before is not None and before.are(self._added):
            return True
        acts = self._add(grad_scale, found_inf)
        if acts:
            for hooks in all_on(self.optimizer):  # what other methods have added is still there
                if hooks is self or (before is not None and before.are(hooks._added)):
                    hooks._added = _Writes.so_far(self.optimizer)
        return acts


def all_on(optimizer: Optimizer) -> list[StepHooks]:
    """Those of every method on it, in the order in which they act."""
    hooks: Sequence[Any] = [*optimizer._optimizer_step_post_hooks.values()]
    owners = (getattr(hook, "__self__", None) for hook in hooks)
    return [owner for owner in owners if isinstance(owner, StepHooks)]
