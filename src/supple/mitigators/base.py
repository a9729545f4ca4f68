"""What every method shares: the three moments of a training step at which it may act, and its place on an optimizer."""

import inspect
import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from supple.mitigators.rounding import HALF, rounded_at_random
from supple.mitigators.step_hooks import StepHooks, add_gradients, check_step_sizes, fitting, held_by, step_sizes
from supple.optimizers import inner_optimizers, memory_of
from supple.pieces import pieces
from supple.population import Population
from supple.power_iteration import without_autocast
from supple.roles import Kind, Role, describe, find_roles, masks, owned_parameters
from supple.sharding import copy_whole_or_piece, is_sharded, local, together

Tensors = dict[str, Tensor]
State = dict[str, Tensors]
"""What a method remembers: for each parameter's name, named tensors."""
Strength = float | Tensor
APART = 2_654_435_769  # torch looks at the last 32 bits of a seed
"""Added to the seeds of methods: of one seed with its initial weights, a network would be "drawn anew" as it was."""
GLOBAL = ""
"""The entry of a state for what belongs to no parameter; it stays on the host."""
_ROUNDING = "rounding steps"
"""There: in how many steps half precision was rounded at random."""


@dataclass(frozen=True)
class Update:
    """What a method may want to know of the optimizer's step that has just been taken, by parameter."""

    step_sizes: Mapping[str, Strength]
    """The optimizer's present step size: its ``lr``, times the ``d`` that Prodigy and D-Adaptation estimate."""
    moments: Mapping[str, Tensors]
    """What the optimizer remembers (Adam's ``exp_avg``, momentum, ...): the live tensors. Those without dimensions,
    such as Adam's ``step``, belong to the parameter as a whole."""
    memory: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    """The live dictionaries that hold these tensors; some optimizers count steps there in numbers."""
    skipped: Tensor | None = None
    """1 on the device where GradScaler made a fused optimizer skip this step, which the strength is then 0 for."""
    idle: Mapping[str, Tensor] = field(default_factory=dict)
    """The optimizer's other parameters, to read: they have no gradient in this step, so they must stay as they are.
    What a method counts for them goes on."""


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
    step alike. They wait for no result on the host. ``add_gradients`` may take ``step_sizes``, by parameter, as a
    keyword.

    A parameter whose ``.grad`` is None is left exactly as it is, as torch's optimizers leave it. Parameters in bfloat16
    and float16 are changed in float32 and rounded at random, without bias.

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
    goes_by_role = False
    """Whether a parameter's role decides what is done to it: those of unknown role are then left out."""
    moves_gradually = True
    """Whether it moves parameters by small amounts in each step, which half precision would lose in rounding."""
    needs_step_sizes = False
    """Whether it must know how far the optimizer steps."""

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
        self._owners = {name: (module, name.rpartition(".")[2]) for name, _, module in owned_parameters(network)}
        self.parameters = {
            name: parameter for name, parameter in self._known.items() if name in self.roles and parameter.numel()
        }
        self._pieces = pieces(self.roles, self.parameters)
        if self.goes_by_role:
            self._leave_out_unknown()
        if not self.parameters:
            raise ValueError("expected a network with parameters, got none: check what was passed, and roles")
        self._shapes = {name: parameter.shape for name, parameter in self.parameters.items()}
        for name, parameter in self.parameters.items():
            if parameter.is_meta or not local(parameter.detach()).isfinite().all():
                what = "none (the meta device)" if parameter.is_meta else "some that are not finite"
                raise ValueError(
                    f"expected parameters with finite values, got {what} in {name!r}: initialise or load it first"
                )
        self._pieces = {name: piece for name, piece in self._pieces.items() if name in self.parameters}
        if self._pieces and (self._members or not self.works_on_pieces):
            raise ValueError(
                f"expected whole parameters, got the sharded {next(iter(self._pieces))!r}: {type(self).__name__} sees "
                "all of a tensor, so train with DistributedDataParallel, leave sharded parameters out with "
                "roles={name: None}, or choose a method that works on shards, such as SpectralRegularizer"
            )
        self._masked = self.goes_by_role and bool(masks(network))
        self.takes_step_sizes = "step_sizes" in inspect.signature(self.add_gradients).parameters
        self.state: State = {}
        self._generators: tuple[torch.Generator, ...] = ()
        self._rounding_steps = 0
        self._has_warned = False
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
        only looks. It is that of every trainable parameter, also of those that the loss does not use.
        """
        parameters = self._trainable()
        with without_autocast(self._first):
            return self.strength * self._penalty(self._unpruned(self._here(parameters)))

    @torch.no_grad()
    def before_step(self) -> None:
        """Add the gradient of :meth:`penalty` to each ``.grad`` that there is, in a loop without ``attach``."""
        add_gradients(self, self._trainable())

    @torch.no_grad()
    def after_step(self, optimizer: Optimizer) -> None:
        """Change the parameters that ``optimizer`` has just updated, in a loop without ``attach``.

        Call it before ``optimizer.zero_grad()``: a parameter without a gradient was not updated, and is left alone.
        """
        for inner in inner_optimizers(optimizer):
            check_step_sizes(self, inner)
            self._act_after_step(inner, self._select(held_by(inner)))

    def observe(self, networks: Sequence[nn.Module] = ()) -> None:
        """Look at activations from now on, in a loop without ``attach``; :meth:`detach` ends it.

        Args:
            networks: where the forward passes happen, if not in the network itself: a population's members in their
                order, as modules that share its memory.
        """

    def attach(self, optimizer: Optimizer) -> Self:
        """Act on every ``optimizer.step()`` from now on, for the parameters that this optimizer holds.

        Works with closures, gradient scaling, accumulated gradients and parameter groups (each with its own step
        size), and through optimizers that wrap another one (Accelerate, Lightning, Lookahead, SAM, Opacus, ...): it
        then acts on the steps of the inner one, which move the parameters. A network whose parameters are split between
        optimizers is attached to each of them. The method's gradient joins inside the step: what comes before it, such
        as clipping, sees the loss's gradient alone. A step that raised an error may be taken once more on the same
        gradients: they hold the method's already, and it is not added twice.

        A copy of an optimizer has no hooks. Copy or pickle network, optimizer and method together and the three copies
        belong together as the originals do.

        Warns, once, where the first steps would change the network much.

        Raises:
            TypeError: for anything but an optimizer.
            ValueError: when the optimizer holds none of the network's parameters, maximizes, runs no step hooks, or
                tells no step size to a method that needs one; and, also in a later step, when it holds parameters that
                were added to the network or replaced since the method was built.
            RuntimeError: when already attached to this optimizer, or when another method of this kind acts there on
                some of the same parameters.
        """
        found = fitting(self, optimizer)
        self._check(found)
        if not self._has_warned:
            self._has_warned = self._warn_of_changes(found)
        self._hooks += [StepHooks(self, inner) for inner in found]
        if not self._observed:
            self.observe()
        return self

    @property
    def steps(self) -> tuple[int, ...]:
        """In how many steps it has acted, for each optimizer that it is attached to; compiled steps do not count."""
        return tuple(hooks.steps for hooks in self._hooks)

    def __repr__(self) -> str:
        strength = self.strength.tolist() if isinstance(self.strength, Tensor) else self.strength
        matrices = sum(self.roles[name].kind == "matrix" for name in self.parameters)
        optimizers = ", ".join(f"{type(hooks.optimizer).__name__} ({hooks.steps} steps)" for hooks in self._hooks)
        return (
            f"{type(self).__name__}(strength={strength}, {''.join(f'{fact}, ' for fact in self._facts())}"
            f"{len(self.parameters)} parameters, {matrices} of them matrices, "
            f"{f'attached to {optimizers}' if optimizers else 'not attached'})"
        )

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
        if self._rounding_steps:
            state.setdefault(GLOBAL, {})[_ROUNDING] = torch.tensor(self._rounding_steps)
        for name, value in self._options().items():
            state.setdefault(GLOBAL, {})[name] = torch.tensor(value, dtype=torch.float64)
        return state

    @torch.no_grad()
    def load_state_dict(self, state: State) -> None:
        """Take over what :meth:`state_dict` returned, from a method with the same options on the same architecture.

        Raises:
            TypeError: naming the first entry that is no tensor, or one of another type.
            ValueError: naming the first entry that is missing, unknown or of another shape, or the option that is
                another. Whatever is refused, nothing is changed.
        """
        mine = self.state_dict()
        mine.setdefault(GLOBAL, {}).setdefault(_ROUNDING, torch.tensor(0))
        kind = type(self).__name__
        _check_tensors(state, mine, kind)
        for option, value in self._options().items():
            other = state.get(GLOBAL, {}).get(option)
            if other is None or other.ndim or float(other) != value:
                raise ValueError(
                    f"expected the state of a {kind} with {_shown(option, value)}, got one with "
                    f"{_shown(option, other)}: load it into a method with the same options"
                )
        expected, shapes = _shapes(mine), _shapes(state)
        shapes.setdefault(f"{GLOBAL}/{_ROUNDING}", ())  # absent where nothing was rounded
        for entry in sorted(expected.keys() | shapes.keys()):
            if expected.get(entry) != shapes.get(entry):
                raise ValueError(
                    f"expected a state with {entry} of shape {expected.get(entry)}, got {shapes.get(entry)}: "
                    f"load it into a {kind} with the same options on the same architecture"
                )
        randoms = state[GLOBAL]["random"].cpu() if self._generators else ()
        for random in randoms:
            _set_random(torch.Generator(), random)
        for generator, random in zip(self._generators, randoms, strict=True):
            _set_random(generator, random)
        self._rounding_steps = int(state.get(GLOBAL, {}).get(_ROUNDING, 0))
        for name, entries in self.state.items():
            for key, tensor in entries.items():
                copy_whole_or_piece(tensor, state[name][key])

    def describe(self) -> str:
        """A table of every parameter: name, shape, role, number of matrices, and its largest singular value."""
        return describe(self._network, self._role_overrides)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_hooks": [(hooks.optimizer, hooks.steps) for hooks in self._hooks]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """An optimizer leaves its hooks behind when it is copied or pickled; they are hung on the copy again.

        Unchecked, as they fitted: the copy of a network that holds this method itself has no modules yet.
        """
        self.__dict__.update(state, _hooks=[])
        self._hooks.extend(StepHooks(self, optimizer, steps) for optimizer, steps in state["_hooks"])

    # What a method may add to these.

    def _options(self) -> dict[str, float]:
        """Options that a loaded state must agree with, as numbers."""
        return {}

    def _facts(self) -> list[str]:
        """Options that its ``repr`` shows."""
        return []

    def _check(self, optimizers: Sequence[Optimizer]) -> None:
        """Make sure, before anything is attached, that the method can act on the steps of these."""

    def _warn_of_changes(self, optimizers: Sequence[Optimizer]) -> bool:
        """Whether it has warned that it is about to change the network much."""
        return False

    # The kernels' surroundings.

    def _add_to(self, gradients: Tensors, parameters: Tensors, step_sizes: Mapping[str, Strength | None]) -> None:
        """Run ``add_gradients``: for pruned parameters on what is left of them, and into that alone."""
        options = {"step_sizes": step_sizes} if self.takes_step_sizes else {}
        pruned = self._masks_of(parameters)
        into = gradients | {name: torch.zeros_like(gradients[name]) for name in pruned}
        self.add_gradients(self._unpruned(parameters), into, self._state_here(), self.strength, **options)
        for name, mask in pruned.items():
            gradients[name].addcmul_(into[name], mask.to(into[name].dtype))

    def _act_after_step(self, optimizer: Optimizer, parameters: Tensors) -> None:
        found_inf = getattr(optimizer, "found_inf", None)  # 1 where GradScaler made a fused optimizer skip its step
        strength = self.strength if found_inf is None else self.strength * (1 - found_inf)
        update = _update_of(optimizer, parameters, found_inf)
        if self.needs_step_sizes and len(update.step_sizes) < len(parameters):
            check_step_sizes(self, optimizer)
        moved = self._here({name: p for name, p in parameters.items() if name not in update.idle})
        halves = [name for name, p in moved.items() if p.dtype in HALF] if self.moves_gradually else []
        wide = moved | {name: moved[name].float() for name in halves}
        changed = self._unpruned(wide)
        with without_autocast(self._first):
            self.change_parameters(changed, self._state_here(), strength, update)
        pruned = self._masks_of(moved)
        for name, mask in pruned.items():
            wide[name] = torch.where(mask.bool(), changed[name], wide[name])
        randoms = self._rounding_generators(moved[name].device for name in halves)
        for name in dict.fromkeys((*halves, *pruned)):
            part, new = moved[name], wide[name]
            part.copy_(rounded_at_random(new, part.dtype, randoms[part.device]) if name in halves else new)

    def _rounding_generators(self, devices: Iterable[torch.device]) -> dict[torch.device, torch.Generator]:
        """One for each device, seeded by how often it has been asked: so all that is to be remembered is a count."""
        devices = set(devices)
        self._rounding_steps += bool(devices)
        return {device: torch.Generator(device).manual_seed(APART + self._rounding_steps) for device in devices}

    def _masks_of(self, parameters: Iterable[str]) -> Tensors:
        """What pruning multiplies these parameters by, of those that are pruned."""
        if not self._masked:
            return {}
        present = masks(self._network)
        return {name: present[name] for name in parameters if name in present}

    def _unpruned(self, parameters: Tensors) -> Tensors:
        """The parameters, those that are pruned as the forward pass sees them."""
        return parameters | {name: parameters[name] * mask for name, mask in self._masks_of(parameters).items()}

    def _leave_out_unknown(self) -> None:
        unknown = [name for name in self.parameters if self.roles[name].kind == "unknown"]
        self.parameters = {
            name: p for name, p in self.parameters.items() if self.roles[name].kind not in ("other", "unknown")
        }
        if unknown:
            shown = ", ".join(f"{name!r}: None" for name in unknown[:20]) + (", ..." if len(unknown) > 20 else "")
            logging.getLogger("supple").warning(
                f"{type(self).__name__} leaves out {len(unknown)} parameters of module types that it does not know. "
                f"Say what they are with roles={{{shown}}}, where None leaves out in silence and 'matrix', 'vector' or "
                "'scale' takes in; or tell it of a whole type with supple.roles.register()."
            )

    @property
    def _first(self) -> nn.Parameter:
        return next(iter(self.parameters.values()))

    def _trainable(self) -> Tensors:
        self._follow_devices()
        for name, parameter in self.parameters.items():
            owner, own_name = self._owners[name]
            # After a forward pass FSDP2 shows whole parameters in the place of the shards.
            if owner._parameters.get(own_name) is not parameter and not is_sharded(parameter):
                raise ValueError(
                    f"expected the network that this {type(self).__name__} was built with, got another {name!r} or "
                    "none (pruning, parametrizations, adapters): build the method after such changes"
                )
            if parameter.shape != self._shapes[name]:
                raise ValueError(
                    f"expected {name!r} of shape {tuple(self._shapes[name])} as when this {type(self).__name__} was "
                    f"built, got {tuple(parameter.shape)}: resize embeddings first, then build method and optimizer"
                )
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
    sizes = step_sizes(optimizer)
    idle = {name: local(parameter.detach()) for name, parameter in parameters.items() if parameter.grad is None}
    memory = {name: memory_of(optimizer, parameter) for name, parameter in parameters.items()}
    moments = {
        name: {key: value for key, value in entry.items() if isinstance(value, Tensor)}
        for name, entry in memory.items()
    }
    present = {name: size for name, parameter in parameters.items() if (size := sizes[id(parameter)]) is not None}
    return Update(present, moments, memory, skipped, idle)


def _check_tensors(state: Any, mine: State, kind: str) -> None:
    """Make sure that a state is tensors, by name by name, that can be copied into mine."""
    if not isinstance(state, Mapping):
        raise TypeError(f"expected the state_dict() of a {kind}, got {type(state).__name__}: load what it returned")
    for name, entry in state.items():
        if not isinstance(entry, Mapping):
            raise TypeError(
                f"expected a dictionary of tensors for {name!r} in the state of a {kind}, got {type(entry).__name__}: "
                "load what its state_dict() returned"
            )
        for key, tensor in entry.items():
            own, found = mine.get(name, {}).get(key), type(tensor).__name__
            if isinstance(tensor, Tensor):
                if _fits(tensor, own):
                    continue
                found = f"a {found} of {tensor.dtype}, {tensor.layout}, on {tensor.device}"
            raise TypeError(
                f"expected a plain tensor{'' if own is None else f' of {own.dtype}'} for {name}/{key} in the state of "
                f"a {kind}, got {found}: load what its state_dict() returned"
            )


def _fits(tensor: Tensor, own: Tensor | None) -> bool:
    """Whether it holds numbers, whole or in pieces as ours do, and of a type that can be copied into ours."""
    is_plain = tensor.layout == torch.strided and not (tensor.is_nested or tensor.is_meta or tensor.is_quantized)
    if not is_plain or own is None:
        return is_plain
    return torch.can_cast(tensor.dtype, own.dtype) and (is_sharded(own) or not is_sharded(tensor))


def _set_random(generator: torch.Generator, state: Tensor) -> None:
    try:
        generator.set_state(state.clone())  # torch dies of one that lies within another tensor
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"expected the state of a random generator in {GLOBAL}/random, got one that torch refuses ({error}): load "
            "what state_dict() returned"
        ) from error


def _shown(option: str, value: Tensor | float | None) -> str:
    if value is None:
        return f"no {option}"
    if isinstance(value, Tensor) and value.ndim:
        return f"{option} of shape {tuple(value.shape)}"
    return f"{option} 'initial'" if option == "target" and value < 0 else f"{option} {float(value):g}"


def _shapes(state: State) -> dict[str, tuple[int, ...]]:
    return {f"{name}/{key}": tuple(tensor.shape) for name, entry in state.items() for key, tensor in entry.items()}
