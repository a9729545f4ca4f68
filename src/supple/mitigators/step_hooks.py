"""A method's place on an optimizer: what it does when that optimizer takes a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from supple.optimizers import inner_optimizers, parameters_in, reach, step_size, steps_under_way
from supple.power_iteration import without_autocast
from supple.roles import owned_parameters
from supple.sharding import is_sharded, lay_out_gradient, local

if TYPE_CHECKING:
    from supple.mitigators.base import Mitigator, Strength, Tensors


_REBUILD = (
    "DAdaptSGD",
    "DAdaptAdaGrad",
    "FTRL",
    "SGDScheduleFreeReference",
    "AdamWScheduleFreeReference",
    "RAdamScheduleFreeReference",
)
"""Optimizers that compute parameters anew in each step, from sums or averages that they keep."""


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
    """The hooks of one method on one optimizer, until :meth:`remove`."""

    def __init__(self, mitigator: Mitigator, optimizer: Optimizer, steps: int = 0) -> None:
        self.mitigator, self.optimizer, self.steps = mitigator, optimizer, steps
        self._held, self._depth, self._acts = held_by(optimizer), 0, False
        self._added: _Writes | None = None
        self._is_retry = False
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
        if self._depth > 1 or not self.mitigator.acts_on_gradients:
            return None
        self._is_retry = self._added is not None
        # args[0] is the optimizer itself. With a closure the gradients come to be inside the step, each time that the
        # optimizer calls it.
        if callable(closure := kwargs.get("closure")):
            return args, {**kwargs, "closure": self._regularized(closure)}
        if len(args) > 1 and callable(args[1]):
            return (args[0], self._regularized(args[1]), *args[2:]), kwargs
        with torch.no_grad():
            # Set by torch.amp.GradScaler for fused optimizers, whose gradients are still scaled at this point.
            scaling = getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None)
            self._acts = self._add(self._parameters(), sizes_by(reach, optimizer), *scaling)
        return None

    def _on_step_end(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._depth -= 1
        if self._depth:
            return
        self._added = None
        if self.mitigator.acts_on_parameters:
            parameters = self._parameters()
            with torch.no_grad():
                self.mitigator._act_after_step(optimizer, parameters)
            self._acts = bool(with_gradients(parameters))
        if not torch.compiler.is_compiling():  # a count would make a compiled step be compiled again and again
            self.steps += self._acts

    def _regularized(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        def with_penalty() -> Any:
            loss = closure()
            parameters = self._parameters()
            with torch.no_grad():
                if loss is not None:
                    with without_autocast(self.mitigator._first):
                        penalty = self.mitigator._penalty(self.mitigator._here(with_gradients(parameters)))
                    loss = loss + (self.mitigator.strength * penalty).sum()
                # L-BFGS looks along lines, where loss and gradient must belong together: no bound there.
                looks_ahead = any("max_iter" in group for group in self.optimizer.param_groups)
                sizes = None if looks_ahead else sizes_by(reach, self.optimizer)
                self._acts = self._add(parameters, sizes)
            return loss

        return with_penalty

    def _add(self, parameters: Tensors, *how: Any) -> bool:
        """Add the method's gradient, unless it is there: from a step that ended by an error and is taken once more."""
        if torch.compiler.is_compiling():
            return add_gradients(self.mitigator, parameters, *how)
        before, is_retry = _Writes.so_far(self.optimizer), self._is_retry
        self._is_retry = False  # an optimizer may call its closure again
        if is_retry and before is not None and before.are(self._added):
            return True
        acts = add_gradients(self.mitigator, parameters, *how)
        if acts:
            for hooks in _all_on(self.optimizer):  # what other methods have added is still there
                if hooks is self or (before is not None and before.are(hooks._added)):
                    hooks._added = _Writes.so_far(self.optimizer)
        return acts

    def _parameters(self) -> Tensors:
        held = held_by(self.optimizer)
        if held != self._held:  # a parameter group was added, or something took the optimizer over
            _check_parameters(self.mitigator, held, (self._held - held) & _identities(self.mitigator))
            check_step_sizes(self.mitigator, self.optimizer)
            self._held = held
        return self.mitigator._select(held)


def _all_on(optimizer: Optimizer) -> list[StepHooks]:
    """Those of every method on it, in the order in which they act."""
    hooks: Sequence[Any] = [*optimizer._optimizer_step_post_hooks.values()]
    owners = (getattr(hook, "__self__", None) for hook in hooks)
    return [owner for owner in owners if isinstance(owner, StepHooks)]


def add_gradients(
    mitigator: Mitigator,
    parameters: Tensors,
    step_sizes: dict[int, Strength | None] | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> bool:
    """Add the method's gradient to each ``.grad``, which may be multiplied by a ``grad_scale``; whether there was any.

    A parameter without a gradient is left without: the optimizer goes on leaving it alone.
    """
    if not mitigator.acts_on_gradients:
        return False
    for name, parameter in parameters.items():
        if parameter.grad is not None and parameter.grad.is_sparse:
            raise ValueError(
                f"expected a dense gradient, got a sparse one for {name!r}: build its embedding with sparse=False, "
                f"or leave it out with roles={{{name!r}: None}}"
            )
    parameters = with_gradients(parameters)
    if not parameters:
        return False
    if mitigator._pieces:
        for parameter in filter(is_sharded, parameters.values()):
            lay_out_gradient(parameter)
    known = {name: (step_sizes or {}).get(id(parameter)) for name, parameter in parameters.items()}
    gradients = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
    parameters, gradients = mitigator._here(parameters), mitigator._here(gradients)
    if grad_scale is not None:  # a power of two: undone and redone without rounding
        torch._foreach_div_(list(gradients.values()), grad_scale)
    if found_inf is not None:  # the optimizer will skip this step; what is remembered must not keep its infinities
        for gradient in gradients.values():
            gradient.masked_fill_(found_inf.bool(), 0)
    with without_autocast(mitigator._first):
        mitigator._add_to(gradients, parameters, known)
    if grad_scale is not None:
        torch._foreach_mul_(list(gradients.values()), grad_scale)
    return True


def with_gradients(parameters: Tensors) -> Tensors:
    return {name: parameter for name, parameter in parameters.items() if parameter.grad is not None}


def fitting(mitigator: Mitigator, optimizer: Any) -> list[Optimizer]:
    """The optimizers inside ``optimizer`` that hold parameters of the method's, which may act on their steps.

    Raises:
        TypeError: for what is no optimizer.
        ValueError: when none holds the parameters that the method knows, when they maximize, when they run no hooks,
            or when they do not say how far they step and the method must know.
        RuntimeError: when this method is on the optimizer already, or another of its kind for the same parameters.
    """
    found, ours = inner_optimizers(optimizer), _identities(mitigator)
    found = [inner for inner in found if held_by(inner) & ours] or found[:1]
    held = set[int]().union(*map(held_by, found))
    for inner in found:
        _check_parameters(mitigator, held_by(inner), (parameters_in(optimizer) & ours) - held)
        if any(group.get("maximize") for group in inner.param_groups):
            raise ValueError("expected an optimizer that minimizes, got maximize=True: minimize the negative instead")
        check_step_sizes(mitigator, inner)
        _check_master_copies(mitigator, inner)
        _check_company(mitigator, inner)
    return found


def held_by(optimizer: Optimizer) -> set[int]:
    """The identities of an optimizer's parameters."""
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def step_sizes(optimizer: Optimizer) -> dict[int, Strength | None]:
    """The present step size of each of an optimizer's parameters, by its identity; None where that is not known."""
    return sizes_by(step_size, optimizer)


def sizes_by(size_of: Callable[[dict[str, Any]], Strength | None], optimizer: Optimizer) -> dict[int, Strength | None]:
    """A size of its group for each of an optimizer's parameters, by its identity."""
    return {
        id(parameter): size
        for group in optimizer.param_groups
        for size in [size_of(group)]
        for parameter in group["params"]
    }


def largest_step_sizes(optimizer: Optimizer) -> dict[int, float]:
    """Those that a schedule goes up to, where they are known: a warm-up begins at 0."""
    return {
        id(parameter): float(size)
        for group in optimizer.param_groups
        for size in [step_size({**group, "lr": max(group.get("initial_lr", 0.0), group.get("lr") or 0.0)})]
        if size is not None
        for parameter in group["params"]
    }


def _identities(mitigator: Mitigator) -> set[int]:
    return {id(parameter) for parameter in mitigator.parameters.values()}


def _check_parameters(mitigator: Mitigator, held: set[int], lost: set[int]) -> None:
    """Make sure that the optimizer's parameters are the network's, and those that the method was built with.

    ``lost`` are parameters that it was given, and does not move itself.
    """
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
    if lost or not held & _identities(mitigator):
        what = (
            f"that holds none of them{' any more' if lost else ''}"
            if not held & _identities(mitigator)
            else (f"that holds {min(name for name, p in mitigator.parameters.items() if id(p) in lost)!r} as a copy")
        )
        raise ValueError(
            f"expected an optimizer of this network's parameters, got one {what}: build the optimizer from the same "
            "network's parameters(). One that moves copies of them (float32 master weights or flat partitions, as "
            "DeepSpeed, Megatron and Apex keep them) moves nothing that this method knows: there, add penalty().sum() "
            "to the loss instead"
        )


def check_step_sizes(mitigator: Mitigator, optimizer: Optimizer) -> None:
    """A method that steps by itself needs to know how far the optimizer does."""
    if not mitigator.needs_step_sizes:
        return
    sizes = step_sizes(optimizer)
    for name, parameter in mitigator.parameters.items():
        if id(parameter) in sizes and sizes[id(parameter)] is None:
            raise ValueError(
                f"expected a step size (lr) for {name!r}, got none that {type(optimizer).__name__} tells: give it a "
                "fixed lr (Adafactor: lr=..., relative_step=False), or choose the form of the method that acts on "
                "gradients (such as decoupled=False)"
            )


def _check_master_copies(mitigator: Mitigator, optimizer: Optimizer) -> None:
    """Apex and Transformer Engine may keep float32 copies, from which a step overwrites the parameters; others average.

    Known by their names and attributes: the copies may come to be in the first step only.
    """
    has_copies = (
        getattr(optimizer, "master_weights", False) is True
        or bool(parameters_in(getattr(optimizer, "param_groups_master", None)))
        or hasattr(optimizer, "param_groups_full_precision")
        or type(optimizer).__name__ in _REBUILD
    )
    if has_copies and mitigator.acts_on_parameters:
        raise ValueError(
            f"expected an optimizer that moves parameters from where they are, got a {type(optimizer).__name__}, which "
            f"computes them from copies of its own and would overwrite what {type(mitigator).__name__} does after a "
            "step: switch its master weights off, or choose the form of the method that acts on gradients (such as "
            "decoupled=False)"
        )
    if "buckets" in optimizer.state:  # Apex' DistributedFusedAdam
        raise ValueError(
            f"expected an optimizer that reads the parameters' .grad, got a {type(optimizer).__name__}, which keeps "
            "gradients in buffers of its own: add penalty().sum() to the loss instead"
        )


def _check_company(mitigator: Mitigator, optimizer: Optimizer) -> None:
    """Make sure that nothing on the optimizer does the same already."""
    for owner in _all_on(optimizer):
        if owner.mitigator is mitigator:
            raise RuntimeError("expected an optimizer not attached to yet, got the same one twice: detach() first")
        theirs = {id(parameter) for parameter in owner.mitigator.parameters.values()}
        ours = {id(parameter) for parameter in mitigator.parameters.values()}
        if type(owner.mitigator) is type(mitigator) and theirs & ours & held_by(optimizer):
            raise RuntimeError(
                f"expected one {type(mitigator).__name__} of these parameters on an optimizer, got a second, which "
                "would add to the first: detach() that one, or change its strength"
            )
