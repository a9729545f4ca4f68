"""What every method shares: the three moments of a training step at which it may act, and its place on an optimizer."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from supple.mitigators.step_hooks import StepHooks, add_gradients, check_fit, held_by
from supple.optimizers import innermost
from supple.pieces import pieces
from supple.population import Population
from supple.power_iteration import without_autocast
from supple.roles import Kind, Role, describe, find_roles, owned_parameters
from supple.sharding import copy_whole_or_piece, local, together

Tensors = dict[str, Tensor]
State = dict[str, Tensors]
"""What a method remembers: for each parameter's name, named tensors."""
Strength = float | Tensor
APART = 2_654_435_769  # torch looks at the last 32 bits of a seed
"""Added to the seeds of methods: of one seed with its initial weights, a network would be "drawn anew" as it was."""
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
    memory: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    """The live dictionaries that hold these tensors; some optimizers count steps there in numbers."""
    skipped: Tensor | None = None
    """1 on the device where GradScaler made a fused optimizer skip this step, which the strength is then 0 for."""


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
        strength: the multiplier λ, at least 0: a number, or a tensor with one value a member. A schedule assigns to it
            between steps, ``method.strength = ...``; it is no part of ``state_dict()``.
        roles: overrides for :func:`supple.roles.find_roles`.

    Raises:
        TypeError: for anything but a module, or a strength that is no number.
        ValueError: for a strength out of range, and for parameters without finite values.
    """

    largest_strength = math.inf
    traceable = True
    """Whether a compiler can see through the kernels: not where they count steps or draw random numbers on the host."""
    observes = False
    """Whether it looks at activations in the forward pass: :meth:`observe` says whose."""
    works_on_pieces = False
    """Whether the kernels are right for a parameter that is sharded over ranks: they see the piece that lies here."""

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
        self._known = {name: parameter for name, parameter, _ in owned_parameters(network)}
        self.parameters = {
            name: parameter for name, parameter in self._known.items() if name in self.roles and parameter.numel()
        }
        if not self.parameters:
            raise ValueError("expected a network with parameters, got none: check what was passed, and roles")
        for name, parameter in self.parameters.items():
            if parameter.is_meta or not local(parameter.detach()).isfinite().all():
                what = "none (the meta device)" if parameter.is_meta else "some that are not finite"
                raise ValueError(
                    f"expected parameters with finite values, got {what} in {name!r}: initialise or load it first"
                )
        self._pieces = pieces(self.roles, self.parameters)
        if self._pieces and (self._members or not self.works_on_pieces):
            raise ValueError(
                f"expected whole parameters, got the sharded {next(iter(self._pieces))!r}: {type(self).__name__} sees "
                "all of a tensor, so train with DistributedDataParallel, leave sharded parameters out with "
                "roles={name: None}, or choose a method that works on shards, such as SpectralRegularizer"
            )
        self.state: State = {}
        self._generators: tuple[torch.Generator, ...] = ()
        self._hooks: list[StepHooks] = []
        self._observed: list[RemovableHandle] = []

    # The kernels, which each method gives where it acts.

    def add_gradients(self, parameters: Tensors, gradients: Tensors, state: State, strength: Strength) -> None:
        """Add this method's gradient to ``gradients`` and advance ``state``, all in place."""

    def change_parameters(self, parameters: Tensors, state: State, strength: Strength, update: Update) -> None:
        """Change ``parameters``, which the optimizer has just updated, and advance ``state``, all in place."""

    def _penalty(self, parameters: Tensors) -> Tensor:
        """What ``add_gradients`` is the gradient of, at strength 1 and by member; nothing for most methods."""
        return local(self._first).new_zeros(self._members)

    # The face that a training loop sees.

    @property
    def strength(self) -> Strength:
        return self._strength

    @strength.setter
    def strength(self, value: Strength) -> None:
        try:
            tensor = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"expected a strength that is a number or a tensor, got {value!r}") from error
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
        parameters = self._trainable()
        with without_autocast(self._first):
            return self.strength * self._penalty(self._here(parameters))

    @torch.no_grad()
    def before_step(self) -> None:
        """Add the gradient of :meth:`penalty` to each trainable parameter's ``.grad``, in a loop without ``attach``."""
        add_gradients(self, self._trainable())

    @torch.no_grad()
    def after_step(self, optimizer: Optimizer) -> None:
        """Change the parameters that ``optimizer`` has just updated, in a loop without ``attach``."""
        self._act_after_step(optimizer, self._select(held_by(optimizer)))

    def observe(self, networks: Sequence[nn.Module] = ()) -> None:
        """Look at activations from now on, in a loop without ``attach``; :meth:`detach` ends it.

        Args:
            networks: where the forward passes happen, if not in the network itself: a population's members in their
                order, as modules that share its memory.
        """

    def attach(self, optimizer: Optimizer) -> Self:
        """Act on every ``optimizer.step()`` from now on, for the parameters that this optimizer holds.

        Works with closures, gradient scaling, accumulated gradients and parameter groups (each with its own step
        size), and through the optimizers that Accelerate and Lightning wrap around torch's. A network whose parameters
        are split between optimizers is attached to each of them. The method's gradient joins inside the step: what
        comes before it, such as clipping, sees the loss's gradient alone.

        A copy of an optimizer has no hooks. Copy or pickle network, optimizer and method together and the three copies
        belong together as the originals do.

        Raises:
            TypeError: for anything but a torch optimizer.
            ValueError: when the optimizer holds none of the network's parameters, or maximizes; and, also in a later
                step, when it holds parameters that were added to the network or replaced since the method was built.
            RuntimeError: when already attached to this optimizer, or when another method of this kind acts there on
                some of the same parameters.
        """
        optimizer = innermost(optimizer)
        check_fit(self, optimizer)
        self._hooks.append(StepHooks(self, optimizer))
        if not self._observed:
            self.observe()
        return self

    def detach(self) -> Self:
        """Undo every :meth:`attach`; what the method remembers is kept."""
        for hook in self._observed:
            hook.remove()
        for hooks in self._hooks:
            hooks.remove()
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
                        generator.set_state(random.clone())  # torch dies of one that lies within another tensor
                else:
                    copy_whole_or_piece(self.state[name][key], tensor)

    def describe(self) -> str:
        """A table of every parameter: name, shape, role, number of matrices, and its largest singular value."""
        return describe(self._network, self._role_overrides)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_hooks": [hooks.optimizer for hooks in self._hooks]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """An optimizer leaves its hooks behind when it is copied or pickled; they are hung on the copy again.

        Unchecked, as they fitted: the copy of a network that holds this method itself has no modules yet.
        """
        self.__dict__.update(state, _hooks=[])
        self._hooks.extend(StepHooks(self, optimizer) for optimizer in state["_hooks"])

    def _act_after_step(self, optimizer: Optimizer, parameters: Tensors) -> None:
        found_inf = getattr(optimizer, "found_inf", None)  # 1 where GradScaler made a fused optimizer skip its step
        strength = self.strength if found_inf is None else self.strength * (1 - found_inf)
        update = _update_of(optimizer, parameters, found_inf)
        with without_autocast(self._first):
            self.change_parameters(self._here(parameters), self._state_here(), strength, update)

    @property
    def _first(self) -> nn.Parameter:
        return next(iter(self.parameters.values()))

    def _trainable(self) -> Tensors:
        self._follow_devices()
        return {name: parameter for name, parameter in self.parameters.items() if parameter.requires_grad}

    def _select(self, held: Collection[int]) -> Tensors:
        """The trainable parameters among those with these identities."""
        return {name: parameter for name, parameter in self._trainable().items() if id(parameter) in held}

    def _here(self, tensors: Tensors) -> Tensors:
        """Those of an ordinary network as they are; of a sharded one, the pieces that lie on this rank."""
        return {name: local(tensor) for name, tensor in tensors.items()} if self._pieces else tensors

    def _state_here(self) -> State:
        return {name: self._here(entry) for name, entry in self.state.items()} if self._pieces else self.state

    def _over_ranks(self, sums: Tensors) -> Tensors:
        """Sums over each parameter's entries, made complete where some of them lie on other ranks."""
        if not self._pieces:
            return sums
        totals = together(self._pieces[name].total(sums[name]) if name in self._pieces else sums[name] for name in sums)
        return dict(zip(sums, totals, strict=True))

    def _follow_devices(self) -> None:
        """A network may be moved at any time; what is remembered of it goes along."""
        first = self._first.device
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
        self._generators = tuple(torch.Generator().manual_seed(APART + seed + member) for member in seeds)

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


def move_towards(tensor: Tensor, target: Tensor, strength: Strength) -> None:
    """Take ``tensor`` the share ``strength`` of the way to ``target``, in place and in one pass over the memory."""
    share = per_member(strength, tensor.ndim)
    tensor.lerp_(target.to(tensor), share.to(tensor.dtype) if isinstance(share, Tensor) else share)


def is_due(steps: Tensor, every: int, update: Update) -> bool:
    """Count a step on the host, in place; whether it is one of every so many.

    A step that a fused optimizer skipped would lose what was due for a whole period: then the next one is due. The
    device is asked only where it matters.
    """
    if int(steps.add_(1)) % every:
        return False
    if update.skipped is not None and bool(update.skipped):
        steps.sub_(1)
        return False
    return True


def _update_of(optimizer: Optimizer, parameters: Tensors, skipped: Tensor | None) -> Update:
    step_sizes = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    memory = {name: optimizer.state.get(parameter, {}) for name, parameter in parameters.items()}
    moments = {
        name: {key: value for key, value in entry.items() if isinstance(value, Tensor)}
        for name, entry in memory.items()
    }
    present = {name: step_sizes[id(parameter)] for name, parameter in parameters.items()}
    return Update(present, moments, memory, skipped)


def _shapes(state: State) -> dict[str, tuple[int, ...]]:
    return {f"{name}/{key}": tuple(tensor.shape) for name, entry in state.items() for key, tensor in entry.items()}
