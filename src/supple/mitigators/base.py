"""What every method shares: the three moments of a training step at which it may act, and its place on an optimizer."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from supple.population import Population
from supple.roles import Kind, Role, describe, find_roles, owned_parameters

Tensors = dict[str, Tensor]
State = dict[str, Tensors]
"""What a method remembers: for each parameter's name, named tensors."""
Strength = float | Tensor
GLOBAL = ""
"""The entry of a state for what belongs to no parameter; it stays on the host."""


@dataclass(frozen=True)
class Update:
    """What a method may want to know of the optimizer's step that has just been taken, by parameter."""

    step_sizes: Mapping[str, Strength]
    """The optimizer's present step size (its ``lr``)."""
    moments: Mapping[str, Tensors]
    """What the optimizer remembers (Adam's ``exp_avg``, momentum, ...): the live tensors. Those without dimensions,
    such as Adam's ``step``, belong to the parameter as a whole."""


class Mitigator:
    """A method that keeps a network trainable, acting at up to three moments of a training step.

    ============  ===========================  =====================================================
    moment        kernel                       for a loop of your own
    ============  ===========================  =====================================================
    the loss      ``_penalty``                 ``(loss + method.penalty().sum()).backward()``
    gradients     ``add_gradients``            ``method.before_step()`` before ``optimizer.step()``
    parameters    ``change_parameters``        ``method.after_step(optimizer)`` after its ``step()``
    ============  ===========================  =====================================================

    ``attach(optimizer)`` does the last two on the optimizer's own step. The kernels work in place on dictionaries, by
    parameter name, of tensors with any leading dimensions: they serve a network, a population and a compiled training
    step alike. They wait for no result on the host.

    Args:
        network: a module, or a :class:`Population` (then every strength and penalty may differ by member).
        strength: the multiplier λ, at least 0: a number, or a tensor with one value a member. May change at any time.
        roles: overrides for :func:`supple.roles.find_roles`.
    """

    largest_strength = math.inf
    traceable = True
    """Whether a compiler can see through the kernels: not where they count steps or draw random numbers on the host."""
    observes = False
    """Whether it looks at activations in the forward pass: :meth:`observe` says whose."""

    def __init__(
        self,
        network: nn.Module | Population,
        strength: Strength,
        *,
        roles: Mapping[str, Kind | Role | None] | None = None,
    ) -> None:
        self._network, self._role_overrides = network, roles
        self.acts_on_gradients = type(self).add_gradients is not Mitigator.add_gradients
        self.acts_on_parameters = type(self).change_parameters is not Mitigator.change_parameters
        self._members = (len(network),) if isinstance(network, Population) else ()
        self.strength = strength
        self.roles = find_roles(network, roles)
        self.parameters = {
            name: parameter
            for name, parameter, _ in owned_parameters(network)
            if name in self.roles and parameter.numel()
        }
        if not self.parameters:
            raise ValueError("expected a network with parameters, got none: check what was passed, and roles")
        self.state: State = {}
        self._generators: tuple[torch.Generator, ...] = ()
        self._hooks: dict[Optimizer, tuple[RemovableHandle, ...]] = {}
        self._observed: list[RemovableHandle] = []

    # The kernels, which each method gives where it acts.

    def add_gradients(self, parameters: Tensors, gradients: Tensors, state: State, strength: Strength) -> None:
        """Add this method's gradient to ``gradients`` and advance ``state``, all in place."""

    def change_parameters(self, parameters: Tensors, state: State, strength: Strength, update: Update) -> None:
        """Change ``parameters``, which the optimizer has just updated, and advance ``state``, all in place."""

    def _penalty(self, parameters: Tensors) -> Tensor:
        """What ``add_gradients`` is the gradient of, at strength 1 and by member; nothing for most methods."""
        return next(iter(self.parameters.values())).new_zeros(self._members)

    # The face that a training loop sees.

    @property
    def strength(self) -> Strength:
        return self._strength

    @strength.setter
    def strength(self, value: Strength) -> None:
        tensor = torch.as_tensor(value)
        if tensor.shape not in ((), self._members):
            expected = f"a number or {self._members[0]} values, one a member," if self._members else "a number"
            raise ValueError(f"expected a strength of {expected} got shape {tuple(tensor.shape)}: give it that shape")
        if not (tensor.isfinite() & (tensor >= 0) & (tensor <= self.largest_strength)).all():
            raise ValueError(
                f"expected a finite strength from 0 to {self.largest_strength}, got {value}: 0 switches the method off"
            )
        self._strength = tensor if tensor.ndim or isinstance(value, Tensor) else float(value)

    def penalty(self) -> Tensor:
        """What the method adds to the loss, times strength: differentiable, one value a member.

        With gradients enabled it counts as a step and advances what the method remembers; under ``torch.no_grad()`` it
        only looks.
        """
        return self.strength * self._penalty(self._trainable())

    @torch.no_grad()
    def before_step(self) -> None:
        """Add the gradient of :meth:`penalty` to each trainable parameter's ``.grad``, in a loop without ``attach``."""
        self._regularize(self._trainable())

    @torch.no_grad()
    def after_step(self, optimizer: Optimizer) -> None:
        """Change the parameters that ``optimizer`` has just updated, in a loop without ``attach``."""
        found_inf = getattr(optimizer, "found_inf", None)  # 1 where GradScaler made a fused optimizer skip its step
        strength = self.strength if found_inf is None else self.strength * (1 - found_inf)
        parameters = self._held_in(*optimizer.param_groups)
        self.change_parameters(parameters, self.state, strength, _update_of(optimizer, parameters))

    def observe(self, networks: Sequence[nn.Module] = ()) -> None:
        """Look at activations from now on, in a loop without ``attach``; :meth:`detach` ends it.

        Args:
            networks: where the forward passes happen, if not in the network itself: a population's members in their
                order, as modules that share its memory.
        """

    def attach(self, optimizer: Optimizer) -> Self:
        """Act on every ``optimizer.step()`` from now on, for the parameters that this optimizer holds.

        Works with closures, gradient scaling and parameter groups (each with its own step size). A network whose
        parameters are split between optimizers is attached to each of them.

        Raises:
            ValueError: when the optimizer holds none of the network's parameters, or maximizes.
            RuntimeError: when already attached to this optimizer.
        """
        if optimizer in self._hooks:
            raise RuntimeError("expected an optimizer not attached to yet, got the same one twice: detach() first")
        if not any(self._held_in(group) for group in optimizer.param_groups):
            raise ValueError(
                "expected an optimizer of this network's parameters, got one that holds none of them: build the "
                "optimizer from the same network's parameters()"
            )
        if any(group.get("maximize") for group in optimizer.param_groups):
            raise ValueError("expected an optimizer that minimizes, got maximize=True: minimize the negative instead")
        if not self._observed:
            self.observe()
        hooks = []
        if self.acts_on_gradients:
            hooks.append(optimizer.register_step_pre_hook(self._on_step_start))
        if self.acts_on_parameters:
            hooks.append(optimizer.register_step_post_hook(self._on_step_end))
        self._hooks[optimizer] = tuple(hooks)
        return self

    def detach(self) -> Self:
        """Undo every :meth:`attach`; what the method remembers is kept."""
        for hook in [*self._observed, *(hook for hooks in self._hooks.values() for hook in hooks)]:
            hook.remove()
        self._hooks.clear()
        self._observed.clear()
        return self

    def state_dict(self) -> State:
        """A copy of everything that the method remembers between steps."""
        state = {name: {key: tensor.clone() for key, tensor in entry.items()} for name, entry in self.state.items()}
        if self._generators:
            state.setdefault(GLOBAL, {})["random"] = torch.stack([random.get_state() for random in self._generators])
        return state

    def load_state_dict(self, state: State) -> None:
        """Take over what :meth:`state_dict` returned, from a method with the same options on the same architecture.

        Raises:
            ValueError: naming the first entry that is missing, unknown or of another shape; nothing is changed then.
        """
        mine, theirs = _shapes(self.state_dict()), _shapes(state)
        for entry in sorted(mine.keys() | theirs.keys()):
            if mine.get(entry) != theirs.get(entry):
                raise ValueError(
                    f"expected a state with {entry} of shape {mine.get(entry)}, got {theirs.get(entry)}: "
                    f"load it into a {type(self).__name__} with the same options on the same architecture"
                )
        for name, entries in state.items():
            for key, tensor in entries.items():
                if (name, key) == (GLOBAL, "random"):
                    for generator, random in zip(self._generators, tensor.cpu(), strict=True):
                        generator.set_state(random.clone())  # torch reads a slice of a tensor out of bounds
                else:
                    self.state[name][key].copy_(tensor)

    def describe(self) -> str:
        """A table of every parameter: name, shape, role, number of matrices, and its largest singular value."""
        return describe(self._network, self._role_overrides)

    # What happens on an optimizer's step.

    def _on_step_start(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)  # args[0] is the optimizer itself
        if closure is not None:
            # The gradients come to be inside the step, each time that the optimizer calls the closure.
            return args[:1], {**kwargs, "closure": self._regularized(closure, optimizer)}
        with torch.no_grad():
            # Set by torch.amp.GradScaler for fused optimizers, whose gradients are still scaled at this point.
            scaling = getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None)
            self._regularize(self._held_in(*optimizer.param_groups), *scaling)
        return None

    def _on_step_end(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.after_step(optimizer)

    def _regularized(self, closure: Callable[[], Any], optimizer: Optimizer) -> Callable[[], Any]:
        def with_penalty() -> Any:
            loss = closure()
            parameters = self._held_in(*optimizer.param_groups)
            with torch.no_grad():
                if loss is not None:
                    loss = loss + (self.strength * self._penalty(parameters)).sum()
                self._regularize(parameters)
            return loss

        return with_penalty

    def _regularize(
        self, parameters: Tensors, grad_scale: Tensor | None = None, found_inf: Tensor | None = None
    ) -> None:
        if not self.acts_on_gradients:
            return
        for name, parameter in parameters.items():
            if parameter.grad is not None and parameter.grad.is_sparse:
                raise ValueError(
                    f"expected a dense gradient, got a sparse one for {name!r}: build its embedding with sparse=False, "
                    f"or leave it out with roles={{{name!r}: None}}"
                )
        for parameter in parameters.values():
            # Switched off, the method gives no gradient to what has none: the optimizer goes on leaving it alone.
            if parameter.grad is None and (isinstance(self.strength, Tensor) or self.strength > 0):
                parameter.grad = torch.zeros_like(parameter)
        gradients = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
        if not gradients:
            return
        if grad_scale is not None:  # a power of two: undone and redone without rounding
            torch._foreach_div_(list(gradients.values()), grad_scale)
        if found_inf is not None:  # the optimizer will skip this step; what is remembered must not keep its infinities
            for gradient in gradients.values():
                gradient.masked_fill_(found_inf.bool(), 0)
        self.add_gradients({name: parameters[name] for name in gradients}, gradients, self.state, self.strength)
        if grad_scale is not None:
            torch._foreach_mul_(list(gradients.values()), grad_scale)

    def _trainable(self) -> Tensors:
        return self._select(self.parameters)

    def _held_in(self, *groups: dict[str, Any]) -> Tensors:
        held = {id(parameter) for group in groups for parameter in group["params"]}
        return self._select(name for name, parameter in self.parameters.items() if id(parameter) in held)

    def _select(self, names: Iterable[str]) -> Tensors:
        """The trainable parameters among these."""
        self._follow_devices()
        return {name: self.parameters[name] for name in names if self.parameters[name].requires_grad}

    def _follow_devices(self) -> None:
        """A network may be moved at any time; what is remembered of it goes along."""
        first = next(iter(self.parameters.values())).device
        for name, entry in self.state.items():
            device = self.parameters[name].device if name in self.parameters else first
            for key, tensor in entry.items():
                if tensor.device != device and name != GLOBAL:
                    entry[key] = tensor.to(device)
        if isinstance(self.strength, Tensor):
            self._strength = self.strength.to(first)

    def _act_on(self, names: Iterable[str], what: str) -> None:
        """Leave all parameters alone but these."""
        self.parameters = {name: self.parameters[name] for name in names}
        if not self.parameters:
            raise ValueError(f"expected {what}, got a network with none: name one in roles as 'matrix'")

    def _seed(self, seed: int) -> None:
        """Give each member random numbers of its own: those of a lone network whose method has ``seed + its seed``."""
        seeds = self._network.seeds if isinstance(self._network, Population) else (0,)
        self._generators = tuple(torch.Generator().manual_seed(seed + member) for member in seeds)

    def _random(self, like: Tensor, draw: Callable[[Tensor, torch.Generator], object]) -> Tensor:
        """A tensor like ``like`` that ``draw(part, generator)`` has filled in place, member by member."""
        drawn = torch.empty_like(like, device="cpu")
        for part, generator in zip(drawn if self._members else (drawn,), self._generators, strict=True):
            draw(part, generator)
        return drawn.to(like.device, non_blocking=True)


def per_member(strength: Strength, ndim: int) -> Strength:
    """``strength`` shaped so as to multiply a tensor of ``ndim`` dimensions of which the first is the members'."""
    if isinstance(strength, Tensor) and strength.ndim:
        return strength.reshape(-1, *(1,) * (ndim - 1))
    return strength


def add_product(into: Tensor, a: Tensor, b: Tensor, strength: Strength) -> None:
    """``into += strength · a · b`` in one pass over the memory where one strength serves all."""
    if isinstance(strength, Tensor):
        into.addcmul_(a, b * per_member(strength, b.ndim))
    else:
        into.addcmul_(a, b, value=strength)


def _update_of(optimizer: Optimizer, parameters: Tensors) -> Update:
    step_sizes = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    moments = {
        name: {key: tensor for key, tensor in optimizer.state.get(parameter, {}).items() if isinstance(tensor, Tensor)}
        for name, parameter in parameters.items()
    }
    return Update({name: step_sizes[id(parameter)] for name, parameter in parameters.items()}, moments)


def _shapes(state: State) -> dict[str, tuple[int, ...]]:
    return {f"{name}/{key}": tuple(tensor.shape) for name, entry in state.items() for key, tensor in entry.items()}
