"""The interface for training loops: a method, attached to an optimizer, acts at up to three moments of each step."""

import weakref
from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from supple.kernels.power_iteration import without_autocast
from supple.mitigators.attaching import check_held, check_parameters, check_step_sizes, optimizers_to_hook
from supple.mitigators.hooks import StepHooks, all_on
from supple.mitigators.kernel_runner import KernelRunner, with_gradients
from supple.mitigators.kernels import Strength
from supple.mitigators.optimizers import held_by, inner_optimizers, may_compare_losses, reach, searches_lines, sizes_by
from supple.mitigators.states import Tensors
from supple.network.find_roles import describe
from supple.network.population import Population
from supple.network.roles import Overrides

Result = TypeVar("Result")


def _outside_compiled_code(
    act: Callable[["Mitigator", Optimizer], Result],
) -> Callable[["Mitigator", Optimizer], Result]:
    """``act``, which a compiled step calls as it is if the method's choices depend on values."""

    @wraps(act)
    def called(self: "Mitigator", optimizer: Optimizer) -> Result:
        if self.traceable or not torch.compiler.is_compiling():
            return act(self, optimizer)
        result: Result = torch.compiler.disable(partial(act, self))(optimizer)
        return result

    return called


class Mitigator(KernelRunner):
    """A method that keeps a network trainable, acting at up to three moments of a training step.

    ============  ===========================  =====================================================
    moment        kernel                       for a loop of your own
    ============  ===========================  =====================================================
    the loss      ``_penalty``                 ``(loss + method.penalty().sum()).backward()``
    gradients     ``add_gradients``            ``method.before_step()`` before ``optimizer.step()``
    parameters    ``change_parameters``        ``method.after_step(optimizer)`` after its ``step()``
    ============  ===========================  =====================================================

    ``attach(optimizer)`` does the last two in every ``optimizer.step()``. The kernels work in place on dictionaries of
    tensors: see :class:`Kernels`.

    A parameter whose ``.grad`` is None is not changed, as in torch's optimizers. Parameters in bfloat16 and float16 are
    changed in float32, then rounded back with unbiased stochastic rounding.

    Args:
        network: a module, or a :class:`Population` (then each member may have its own strength and penalty).
        strength: the multiplier λ, at least 0: a number, or a tensor with one value per member. A schedule sets it
            between steps with ``method.strength = ...``; ``state_dict()`` does not contain it.
        roles: overrides for :func:`supple.roles.find_roles`.

    Raises:
        TypeError: if the network is not a module, or the strength is not a number.
        ValueError: if the strength is out of range, or a parameter has values that are not finite.
    """

    def __init__(
        self,
        network: nn.Module | Population,
        strength: Strength,
        *,
        roles: Overrides | None = None,
    ) -> None:
        super().__init__(network, strength, roles=roles)
        self._has_warned = False
        self._judged: set[str] = set()
        """The parameters that have been checked for large first changes."""
        self._optimizers: list[weakref.ref[Optimizer]] = []
        """The optimizers that it is attached to; weak references, so that a new optimizer per task costs no memory."""
        self._held: dict[int, set[int]] = {}
        """The ids of the parameters of each optimizer that the method is attached to, by the optimizer's id."""
        self._observed: list[RemovableHandle] = []

    def penalty(self) -> Tensor:
        """The term that the method adds to the loss, with the strength included: differentiable, one value per member.

        With gradients enabled a call counts as a step and updates the method's state; under ``torch.no_grad()`` it does
        not. The penalty includes every trainable parameter, even those that the loss does not use. It is of the
        network's own parameters: ``torch.func.grad`` sees nothing of it (call :meth:`before_step` there).
        """
        parameters = self._trainable()
        with without_autocast(self._first):
            return self.strength * self._penalty(self._unpruned(self._local_shards(parameters)))

    @torch.no_grad()
    def before_step(self) -> None:
        """Add the gradient of :meth:`penalty` to each ``.grad`` that is not None, in a loop without ``attach``.

        With a GradScaler call its ``unscale_(optimizer)`` first: the gradient that is added is not scaled.
        """
        self._add_to_gradients(self._trainable(stepping=True))

    @torch.no_grad()
    @_outside_compiled_code
    def after_step(self, optimizer: Optimizer) -> None:
        """Change the parameters that ``optimizer`` has just updated, in a loop without ``attach``.

        Call it before ``optimizer.zero_grad()``: it skips parameters without a gradient, as the optimizer did. If a
        GradScaler skipped the step, do not call it.

        Raises:
            ValueError: if the optimizer holds none of the network's parameters, or wraps one that lacks some of them.
        """
        inside = inner_optimizers(optimizer)
        held = set[int]().union(*map(held_by, inside))
        ours = set(map(id, self.parameters.values()))
        given = held_by(optimizer) if hasattr(optimizer, "param_groups") else set[int]()
        lost = (given & ours) - held
        if lost or held.isdisjoint(ours):
            check_parameters(self, held, lost)
        for inner in inside:
            check_step_sizes(self, inner)
            self._act_after_step(inner, self._trainable(held_by(inner), stepping=True))

    def start_task(self) -> None:
        """Act once, before a new task's first step: only methods with ``acts_at_task_start`` do something here."""

    def observe(self, networks: Sequence[nn.Module] = ()) -> None:
        """Start to record activations, in a loop without ``attach``; :meth:`detach` stops it.

        Args:
            networks: for a population, its members in order, as modules that share its memory: they run the
                forward passes.
        """

    def attach(self, optimizer: Optimizer) -> Self:
        """Act on every ``optimizer.step()`` from now on, for the parameters that this optimizer holds.

        Works with closures, gradient scaling, accumulated gradients and parameter groups (each with its own step
        size). If the optimizer wraps another one (Accelerate, Lightning, Lookahead, SAM, Opacus, ...), the method acts
        on the steps of the inner one, which updates the parameters. If the parameters are split between optimizers,
        attach to each of them. The method's gradient is added inside the step: code that runs before the step, such as
        clipping, gets only the loss's gradient. If a step raises an error and is repeated on the same gradients, the
        method's gradient is not added twice.

        A copied optimizer loses its hooks. Copy or pickle network, optimizer and method together: then the copied
        method is attached to the copied optimizer.

        Warns once if the first steps would change the network much, and again for layers that are thawed or given to
        the optimizer later, and if a step clears the gradients: then nobody can tell which parameters it updated, and
        methods that change parameters change none.

        Raises:
            TypeError: if it is not an optimizer.
            ValueError: if the optimizer holds none of the network's parameters, maximizes, runs no step hooks, or does
                not give the step size that the method needs. Also, now or in a later step, if it holds parameters that
                were added to the network or replaced after the method was built.
            RuntimeError: if already attached to this optimizer, or if another method of the same class acts there on
                some of the same parameters.
        """
        optimizers = optimizers_to_hook(self, optimizer)
        self._check(optimizers)
        parameters = self._trainable(set[int]().union(*map(held_by, optimizers)))
        if not self._has_warned:
            self._has_warned = self._warn_of_changes(optimizers, parameters)
        self._judged |= parameters.keys()
        for inner in optimizers:
            self._hook(inner)
        if not self._observed:
            self.observe()
        return self

    @property
    def _hooks(self) -> list[StepHooks]:
        optimizers = [optimizer for reference in self._optimizers if (optimizer := reference()) is not None]
        return [hooks for optimizer in optimizers for hooks in all_on(optimizer) if hooks.owner is self]

    @property
    def steps(self) -> tuple[int, ...]:
        """The number of steps it has acted in, for each optimizer it is attached to; compiled steps are not counted."""
        return tuple(hooks.steps for hooks in self._hooks)

    def __repr__(self) -> str:
        strength = self.strength.tolist() if isinstance(self.strength, Tensor) else self.strength
        optimizers = ", ".join(f"{type(hooks.optimizer).__name__} ({hooks.steps} steps)" for hooks in self._hooks)
        return (
            f"{type(self).__name__}(strength={strength}, {''.join(f'{fact}, ' for fact in self._facts())}"
            f"{len(self.parameters)} parameters, {len(self._matrices)} of them matrices, "
            f"{f'attached to {optimizers}' if optimizers else 'not attached'})"
        )

    def detach(self) -> Self:
        """Undo every :meth:`attach`; the method's state is kept."""
        for hook in self._observed:
            hook.remove()
        for hooks in self._hooks:
            hooks.remove()
        self._optimizers.clear()
        self._held.clear()
        self._observed.clear()
        return self

    def built_on(self, network: nn.Module | Population) -> Self:
        """Build this method on another network, with its options and present strength. The result is not attached."""
        arguments, options = self._arguments
        method = type(self)(network, *arguments, **options)
        method.strength = self.strength
        return method

    def describe(self) -> str:
        """A table of all parameters: name, shape, role, number of matrices, and largest singular value."""
        return describe(self._network, self._role_overrides)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_optimizers": [(hooks.optimizer, hooks.steps) for hooks in self._hooks]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Register the hooks again on the copied optimizer: copying or pickling an optimizer loses its hooks.

        Nothing is checked again: if the network contains this method, the copied network has no modules yet.
        """
        self.__dict__.update(state, _optimizers=[], _held={})
        for optimizer, steps in state["_optimizers"]:
            self._hook(optimizer, steps)

    # Methods that a subclass may define.

    def _facts(self) -> list[str]:
        """The options that ``repr`` shows."""
        return []

    def _check(self, optimizers: Sequence[Optimizer]) -> None:
        """Check, before anything is attached, that the method can act on the steps of these optimizers."""

    def _warn_of_changes(self, optimizers: Sequence[Optimizer], parameters: Tensors) -> bool:
        """Warn if the first steps would change these parameters much; return whether it warned."""
        return False

    # Called in the steps of an attached optimizer.

    def _hook(self, optimizer: Optimizer, steps: int = 0) -> None:
        self._held[id(optimizer)] = held_by(optimizer)
        self._optimizers = [reference for reference in self._optimizers if reference() is not None]
        self._optimizers.append(weakref.ref(optimizer))
        StepHooks(  # the optimizer keeps them
            self,
            optimizer,
            add=partial(self._add_on, optimizer) if self.acts_on_gradients else None,
            term=partial(self._term_on, optimizer) if may_compare_losses(optimizer) else None,
            change=partial(self._change_on, optimizer) if self.acts_on_parameters else None,
            steps=steps,
        )

    @torch.no_grad()
    def _add_on(self, optimizer: Optimizer, grad_scale: Tensor | None, found_inf: Tensor | None) -> bool:
        # The line search of L-BFGS needs the exact derivative of the loss, so the gradient is not bounded there.
        sizes = None if searches_lines(optimizer) else sizes_by(reach, optimizer)
        return self._add_to_gradients(self._selected_on(optimizer), sizes, grad_scale, found_inf)

    @torch.no_grad()
    def _term_on(self, optimizer: Optimizer) -> Tensor:
        """The penalty of the parameters that an optimizer updates, times strength, summed over members."""
        parameters = with_gradients(self._selected_on(optimizer))
        with without_autocast(self._first):
            return (self.strength * self._penalty(self._unpruned(self._local_shards(parameters)))).sum()

    @torch.no_grad()
    @_outside_compiled_code
    def _change_on(self, optimizer: Optimizer) -> bool:
        parameters = self._selected_on(optimizer)
        self._act_after_step(optimizer, parameters)
        return bool(with_gradients(parameters))

    def _selected_on(self, optimizer: Optimizer) -> Tensors:
        held = held_by(optimizer)
        if held != self._held[id(optimizer)]:  # a parameter group was added, or another library replaced parameters
            check_held(self, optimizer, self._held[id(optimizer)])
            self._held[id(optimizer)] = held
        selected = self._trainable(held, stepping=True)
        if not (torch.compiler.is_compiling() or selected.keys() <= self._judged):
            self._warn_of_changes([optimizer], {name: selected[name] for name in selected.keys() - self._judged})
            self._judged |= selected.keys()
        return selected
