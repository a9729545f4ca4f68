"""The base class of every method: its kernels, and what it holds (parameters, their roles, strength, state)."""

import inspect
import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from supple.kernels.sharding import copy_whole_or_piece, is_sharded, local, run_in_lockstep
from supple.mitigators.states import GLOBAL, ROUNDING, State, Tensors, check_state, set_random
from supple.network.find_roles import find_roles, masks, owned_parameters
from supple.network.population import Population, members_of, module_of
from supple.network.roles import Overrides
from supple.network.shards import pieces

Strength = float | Tensor
SEED_OFFSET = 2_654_435_769  # torch looks at the last 32 bits of a seed
"""Keeps a method that is seeded like its network from drawing the network's own initial weights."""


@dataclass(frozen=True)
class Update:
    """What a method may need to know about the optimizer step that has just finished, by parameter."""

    step_sizes: Mapping[str, Strength]
    """The optimizer's current step size: its ``lr``, times the ``d`` that Prodigy and D-Adaptation estimate."""
    moments: Mapping[str, Tensors]
    """The optimizer's state (Adam's ``exp_avg``, momentum, ...): its own tensors, not copies. A tensor without
    dimensions, such as Adam's ``step``, is for the whole parameter."""
    memory: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    """The optimizer's own dictionaries that hold these tensors; some optimizers keep a step count there as a number."""
    skipped: Tensor | None = None
    """A tensor on the device: 1 if GradScaler made a fused optimizer skip this step. The strength is then 0."""
    idle: Mapping[str, Tensor] = field(default_factory=dict)
    """The optimizer's parameters without a gradient in this step: read only, they must not change. A method still
    counts steps for them."""


class Kernels:
    """What a method does in a training step, as functions over dictionaries of tensors, and what it holds.

    The kernels work in place on dictionaries from parameter name to tensor. Tensors may have leading dimensions, so the
    same kernels serve a network, a population and a compiled training step. They do not wait for the device;
    only with a GradScaler, a method that acts once per period reads whether the step was skipped, when it is due.
    ``add_gradients`` may take a keyword ``step_sizes``, a dictionary by parameter.
    """

    largest_strength = math.inf
    traceable = True
    """Whether ``torch.compile`` can trace the kernels: no if they count steps or draw random numbers on the host."""
    observes = False
    """Whether it records activations in the forward pass: :meth:`observe` chooses the modules."""
    works_on_shards = False
    """Whether the kernels are correct for sharded parameters; they get only this rank's shard."""
    goes_by_role = False
    """Whether a parameter's role decides what the method does to it; it then leaves out parameters of unknown role."""
    makes_small_changes = True
    """Whether it changes parameters by small amounts in each step, which rounding to half precision would lose."""
    needs_step_sizes = False
    """Whether it must know the optimizer's step size."""
    scheduled = False
    """Whether it acts only once per period of steps. A :class:`supple.training.learner.Learner` then lets it act before
    the next step instead of after this one, so that no network is measured right after a reset."""

    acts_at_task_start = False
    """Whether it acts when ``start_task()`` is called. The laboratory calls it before every task but the first."""

    def __init__(
        self,
        network: nn.Module | Population,
        strength: Strength,
        *,
        roles: Overrides | None = None,
    ) -> None:
        if torch.is_inference_mode_enabled():
            raise RuntimeError(
                f"expected a {type(self).__name__} that is built outside torch.inference_mode(), got one inside: its "
                "state could not change in a step"
            )
        self._network, self._role_overrides = network, roles
        self.acts_on_gradients = type(self).add_gradients is not Kernels.add_gradients
        self.acts_on_parameters = type(self).change_parameters is not Kernels.change_parameters
        self._module, self._members = module_of(network), members_of(network)
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
            raise ValueError("expected a network with parameters, got none: pass a whole network, and check roles")
        self._shapes = {name: parameter.shape for name, parameter in self.parameters.items()}
        for name, parameter in self.parameters.items():
            if isinstance(self._owners[name][0], torch.jit.ScriptModule):
                raise TypeError(
                    f"expected a module of Python code, got {name!r} in one from torch.jit: build the "
                    f"{type(self).__name__} on the original module"
                )
            if parameter.is_meta or not local(parameter.detach()).isfinite().all():
                what = "none (the meta device)" if parameter.is_meta else "some that are not finite"
                raise ValueError(
                    f"expected parameters with finite values, got {what} in {name!r}: initialize or load it first"
                )
        self._pieces = {name: piece for name, piece in self._pieces.items() if name in self.parameters}
        if self._pieces and (self._members or not self.works_on_shards):
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

    def add_gradients(self, parameters: Tensors, gradients: Tensors, state: State, strength: Strength) -> None:
        """Add this method's gradient to ``gradients`` and advance ``state``, all in place."""

    def change_parameters(self, parameters: Tensors, state: State, strength: Strength, update: Update) -> None:
        """Change ``parameters``, which the optimizer has just updated, and advance ``state``, all in place."""

    def _penalty(self, parameters: Tensors) -> Tensor:
        """The penalty whose gradient ``add_gradients`` adds: at strength 1, one value a member; 0 for most methods."""
        return local(self._first).new_zeros(self._members)

    @property
    def strength(self) -> Strength:
        return self._strength

    @strength.setter
    def strength(self, value: Strength) -> None:
        try:
            tensor = value if isinstance(value, Tensor) else torch.as_tensor(value, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"expected a number or a tensor as strength, got {value!r}: pass one, such as 1e-4"
            ) from error
        if tensor.shape not in ((), self._members):
            expected = f"a number or {self._members[0]} values, one per member" if self._members else "a number"
            raise ValueError(f"expected {expected} as strength, got shape {tuple(tensor.shape)}: give it that shape")
        if not (tensor.isfinite() & (tensor >= 0) & (tensor <= self.largest_strength)).all():
            raise ValueError(
                f"expected a finite strength from 0 to {self.largest_strength}, got {value}: 0 switches the method off"
            )
        self._strength = tensor if tensor.ndim or isinstance(value, Tensor) else float(value)

    def state_dict(self) -> State:
        """A copy of everything that the method keeps between steps."""
        state = {name: {key: tensor.clone() for key, tensor in entry.items()} for name, entry in self.state.items()}
        if self._generators:
            state.setdefault(GLOBAL, {})["random"] = torch.stack([random.get_state() for random in self._generators])
        if self._rounding_steps:
            state.setdefault(GLOBAL, {})[ROUNDING] = torch.tensor(self._rounding_steps, device="cpu")
        for name, value in self._options().items():
            state.setdefault(GLOBAL, {})[name] = torch.tensor(value, dtype=torch.float64, device="cpu")
        return state

    @torch.no_grad()
    def load_state_dict(self, state: State) -> None:
        """Load what :meth:`state_dict` returned, from a method on the same architecture.

        Options that only say how to go on, such as a period or a decay, may have changed. Those that decide what the
        state means (of :class:`SpectralRegularizer`: target, exponent, one_sided and decoupled) may not.

        Raises:
            TypeError: if an entry is not a tensor or has another type; the message names the first one.
            ValueError: if an entry is missing, unknown or has another shape, or such an option differs; the message
                names the first one. After an error nothing has changed.
        """
        check_state(state, self.state_dict(), self._options(), type(self).__name__)
        randoms = state[GLOBAL]["random"].cpu() if self._generators else ()
        for random in randoms:
            set_random(torch.Generator(), random)
        for generator, random in zip(self._generators, randoms, strict=True):
            set_random(generator, random)
        self._rounding_steps = int(state.get(GLOBAL, {}).get(ROUNDING, 0))
        for name, entries in self.state.items():
            for key, tensor in entries.items():
                copy_whole_or_piece(tensor, state[name][key])

    def _options(self) -> dict[str, float]:
        """Options that a loaded state must agree with, as numbers."""
        return {}

    def _masks_of(self, parameters: Iterable[str]) -> Tensors:
        """The pruning masks of these parameters, for those that are pruned."""
        if not self._masked:
            return {}
        present = masks(self._network)
        return {name: present[name] for name in parameters if name in present}

    def _unpruned(self, parameters: Tensors) -> Tensors:
        """The parameters as the forward pass uses them: pruned ones multiplied by their masks."""
        return parameters | {name: parameters[name] * mask for name, mask in self._masks_of(parameters).items()}

    def _leave_out_unknown(self) -> None:
        unknown = [name for name in self.parameters if self.roles[name].kind == "unknown"]
        self.parameters = {
            name: p for name, p in self.parameters.items() if self.roles[name].kind not in ("other", "unknown")
        }
        if unknown:
            shown = ", ".join(f"{name!r}: None" for name in unknown[:20]) + (", ..." if len(unknown) > 20 else "")
            logging.getLogger("supple").warning(
                f"{type(self).__name__} leaves out {len(unknown)} parameters of module types or "
                "parametrizations that it does not know. "
                f"Set their roles with roles={{{shown}}}: None leaves a parameter out without this message; 'matrix', "
                "'vector' or 'scale' includes it. For a whole module type, use supple.roles.register()."
            )

    @property
    def _matrices(self) -> list[str]:
        """The names of the weight matrices."""
        return [name for name in self.parameters if self.roles[name].kind == "matrix"]

    @property
    def _first(self) -> nn.Parameter:
        return next(iter(self.parameters.values()))

    def _trainable(self, held: Collection[int] | None = None, *, stepping: bool = False) -> Tensors:
        """The parameters that are not frozen, or those of them with these ids; ``stepping`` after a backward pass."""
        self._follow_devices(held)
        # Compiled code notices that a gradient appears, but not that a parameter is no longer frozen.
        by_gradient = stepping and torch.compiler.is_compiling()
        trainable: Tensors = {
            name: parameter
            for name, parameter in self.parameters.items()
            if (parameter.grad is not None if by_gradient else parameter.requires_grad)
            and (held is None or id(parameter) in held)
        }
        for name, parameter in trainable.items():  # libraries may replace frozen ones, as peft does in attention
            owner, own_name = self._owners[name]
            # After a forward pass FSDP2 puts whole parameters into the module, in place of the shards.
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
        return trainable

    def _local_shards(self, tensors: Tensors) -> Tensors:
        """The tensors themselves for an ordinary network; this rank's shards for a sharded one."""
        return {name: local(tensor) for name, tensor in tensors.items()} if self._pieces else tensors

    def _local_state(self) -> State:
        return {name: self._local_shards(entry) for name, entry in self.state.items()} if self._pieces else self.state

    def _sum_over_ranks(self, sums: Tensors) -> Tensors:
        """Complete sums over each parameter's entries: add the other ranks' parts for sharded parameters."""
        if not self._pieces:
            return sums
        pieces = self._pieces
        totals = run_in_lockstep(pieces[name].total(part) if name in pieces else part for name, part in sums.items())
        return dict(zip(sums, totals, strict=True))

    def _follow_devices(self, held: Collection[int] | None = None) -> None:
        """Move the state to the parameters' devices: the network may have been moved since the last step."""
        first = self._first.device
        for name, entry in self.state.items():
            if held is not None and name in self.parameters and id(self.parameters[name]) not in held:
                continue  # it waits for its own optimizer
            device = self.parameters[name].device if name in self.parameters else first
            for key, tensor in entry.items():
                if tensor.device != device and name != GLOBAL:
                    entry[key] = tensor.to(device)
        if isinstance(self.strength, Tensor):
            self._strength = self.strength.to(first)

    def _act_on(self, names: Iterable[str], what: str) -> None:
        """Restrict the method to these parameters."""
        self.parameters = {name: self.parameters[name] for name in names}
        if not self.parameters:
            raise ValueError(f"expected {what}, got a network with none: name one in roles as 'matrix'")

    def _seed(self, seed: int) -> None:
        """One generator per member, seeded ``seed + member's seed``: a single network with that sum draws the same."""
        seeds = self._network.seeds if isinstance(self._network, Population) else (0,)
        self._generators = tuple(torch.Generator().manual_seed(SEED_OFFSET + seed + member) for member in seeds)

    def _random(self, like: Tensor, draw: Callable[[Tensor, torch.Generator], object]) -> Tensor:
        """A tensor shaped like ``like``; ``draw(part, generator)`` fills each member's part in place."""
        drawn = torch.empty_like(like, device="cpu")
        for part, generator in zip(drawn if self._members else (drawn,), self._generators, strict=True):
            draw(part, generator)
        return drawn.to(like.device, non_blocking=True)


def per_member(strength: Strength, ndim: int) -> Strength:
    """``strength`` reshaped to multiply a tensor with ``ndim`` dimensions whose first dimension is the members."""
    if isinstance(strength, Tensor) and strength.ndim:
        return strength.reshape(-1, *(1,) * (ndim - 1))
    return strength


def times_strength(factors: list[Tensor], strength: Strength, tensors: list[Tensor]) -> list[Tensor]:
    """``strength`` times each of the factors (one number a tensor), to multiply the tensors."""
    if isinstance(strength, Tensor) and strength.ndim:
        return [torch.as_tensor(per_member(strength * f, t.ndim)) for f, t in zip(factors, tensors, strict=True)]
    return [*torch._foreach_mul(factors, strength)]


def move_towards(tensor: Tensor, target: Tensor, strength: Strength) -> None:
    """Move ``tensor`` by the fraction ``strength`` of the way to ``target``, in place, in one pass over memory."""
    share = per_member(strength, tensor.ndim)
    tensor.lerp_(target.to(tensor), share.to(tensor.dtype) if isinstance(share, Tensor) else share)


def is_due(steps: Tensor, every: int, update: Update) -> bool:
    """Count a step on the host, in place; return whether this step is a multiple of ``every``.

    If a fused optimizer skipped the step, the next step is due instead, so that no period is lost. The device is read
    only in a step that would be due.
    """
    if int(steps.add_(1)) % every:
        return False
    if update.skipped is not None and bool(update.skipped):
        steps.sub_(1)
        return False
    return True
