"""The base of methods that replace hidden units: it records activations and writes the new units."""

import math
import warnings
import weakref
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from supple.kernels.power_iteration import working_dtype
from supple.kernels.sharding import ranks_of, sum_over_ranks
from supple.mitigators.base import Mitigator
from supple.mitigators.initializers import Initializer, initializers_of
from supple.mitigators.kernels import Strength, Update, per_member
from supple.mitigators.optimizers import held_by
from supple.mitigators.recorder import Recorder
from supple.mitigators.states import GLOBAL, State, Tensors
from supple.network.population import Population
from supple.network.roles import Overrides
from supple.network.units import Skipped, UnitGroup, Units, check_moments, find_units, reset_units

_of_dropped_methods: list[RemovableHandle] = []
"""The hooks of methods that no longer exist, such as those of earlier tasks. The next method removes them: a finalizer
must not, because it may run while torch iterates over a module's hooks."""


class Activity(NamedTuple):
    """What a group's units sent to the next layer since the last step, averaged over all forward passes."""

    magnitude: Tensor
    """Mean |h| ``(members…, n)``."""
    mean: Tensor
    """Mean h ``(members…, n)`` if the method needs it, otherwise empty."""
    seen: Tensor
    """Whether there was a forward pass with finite activations, ``(members…, 1)``."""


class Choice(NamedTuple):
    """Which of a group's units to replace; of fixed size, so that the host need not wait for the device."""

    which: Tensor
    """The candidate units, ``(members…, k)``."""
    chosen: Tensor
    """Whether to replace them, ``(members…, k)``."""
    counts: Sequence[int] | None = None
    """If known on the host: how many of each member's candidates are replaced, from the first on. Only their weights
    are drawn, so that a member of a population draws the same random numbers as a single network."""


class UnitResets(Mitigator):
    """A method that judges hidden units by their activations and replaces some of them after a step.

    Args:
        network: a module or a :class:`Population`. With DistributedDataParallel, pass the wrapped module: then the
            activations on all ranks count, and all ranks choose the same units.
        strength: its meaning depends on the method; 0 switches the method off.
        units: which units, if :func:`supple.network.units.find_units` does not find them.
        initializer: draws a new unit's incoming weights; None for the ``reset_parameters()`` of the layer.
        roles: None for a parameter leaves out the units that it belongs to.
        seed: of the new weights.

    Raises:
        ValueError: if the network has no unit that can be replaced alone; in a forward pass, if a convolution's units
            enter a layer that mixes them with the examples; when attached, if a unit's parameters are split between
            optimizers.
    """

    observes = True
    traceable = False
    makes_small_changes = False
    needs_mean = False
    """Whether it needs the mean of h too."""

    def __init__(
        self,
        network: nn.Module | Population,
        strength: Strength,
        *,
        units: Units | None = None,
        initializer: Initializer | None = None,
        roles: Overrides | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(network, strength, roles=roles)
        groups, skipped = find_units(network, units)
        buffers = dict(self._module.named_buffers())
        self.groups = tuple(g for g in groups if all(p.name in self.parameters or p.name in buffers for p in g.parts))
        left_out = (Skipped(g.name, "one of its parameters is left out") for g in groups if g not in self.groups)
        self.skipped = (*left_out, *skipped)
        if not self.groups:
            reasons = "; ".join(f"{entry.layer!r} {entry.reason}" for entry in self.skipped) or "it has no layers"
            raise ValueError(
                f"expected a network with hidden units that can be replaced one by one, got none ({reasons}): "
                'name them with units=[("entering layer", "leaving layer"), ...]'
            )
        self._searched = units is None
        self._buffers = sorted({part.name for group in self.groups for part in group.parts} & buffers.keys())
        self._host_strength: tuple[Strength, Strength] = (math.nan, math.nan)
        self._recorders, self._has_seen = list[Recorder](), False
        self._places = {group.name: place for place, group in enumerate(self.groups)}
        self._initializers = (
            dict.fromkeys(self._places, initializer) if initializer else initializers_of(network, self.groups)
        )
        self._named_unseen: set[str] = set()
        wrappers = (part for part in self._module.modules() if isinstance(part, DistributedDataParallel))
        self._wrapper = next(wrappers, None)
        self._seed(seed)
        self.state = {GLOBAL: {"steps": torch.zeros(len(self.groups), dtype=torch.int64, device="cpu")}}
        for group in self.groups:
            self.state[group.name] = self._first_state(group)
            for key, tensor in self._first_host_state(group).items():
                self.state[GLOBAL][f"{key} in {group.name}"] = tensor
            sums = {"magnitude": group.size, "mean": group.size if self.needs_mean else 0, "forwards": 1}
            self.state[_activity(group)] = {key: self._zeros(group, n) for key, n in sums.items()}

    # Defined by each method.

    @abstractmethod
    def _choose(
        self, group: UnitGroup, step: int, activity: Activity, tensors: Tensors, state: State, strength: Strength
    ) -> Choice | None:
        """Which units to replace in this step (steps count from 1), or None; update ``state`` in place.

        ``strength`` is shaped to broadcast with ``(members…, n)``.
        """

    def _first_state(self, group: UnitGroup) -> Tensors:
        """The initial state of a group."""
        return {}

    def _first_host_state(self, group: UnitGroup) -> Tensors:
        """A group's initial counters on the host, kept as ``state[GLOBAL]["<key> in <group>"]``."""
        return {}

    def _needs_activations(self, step: int) -> bool:
        """Whether a group's ``step``, counted from 1, needs activations."""
        return True

    # Common to all methods.

    def observe(self, networks: Sequence[nn.Module] = ()) -> None:
        for hook in (*self._observed, *_of_dropped_methods):
            hook.remove()
        _of_dropped_methods.clear()
        self._recorders.clear()
        self._observed.clear()
        self._has_seen = False
        slots: list[tuple[nn.Module, int | None]] = [(module, index) for index, module in enumerate(networks)]
        for group in self.groups:
            # Layers that a search found are called together; of those that a user named, perhaps one, such as a head.
            consumers = group.leaving[:1] if self._searched else group.leaving
            for (module, slot), consumer in product(slots or [(self._module, None)], consumers):
                sums = self.state[_activity(group)]
                recorder = Recorder(group, consumer, sums, self.state[group.name], slot, self._wrapper is not None)
                layer = module.get_submodule(consumer.path)
                self._observed.append(layer.register_forward_pre_hook(recorder, with_kwargs=True))
                self._recorders.append(recorder)
                first = module.get_submodule(group.name)
                if self._searched and isinstance(first, _ConvNd) and isinstance(layer, nn.Linear):
                    self._observed.append(first.register_forward_hook(recorder.expect))
        weakref.finalize(self, _of_dropped_methods.extend, tuple(self._observed)).atexit = False
        self._listen()

    def change_parameters(self, parameters: Tensors, state: State, strength: Strength, update: Update) -> None:
        if not isinstance(self.strength, Tensor) and self.strength == 0:
            self._forget(self.groups, state)  # activations that are observed while it is off do not count later
            return
        buffers = {name: self._module.get_buffer(name) for name in self._buffers}
        frozen = {name for name, parameter in self.parameters.items() if not parameter.requires_grad}
        # What was seen while a group was frozen does not count later.
        self._forget([group for group in self.groups if any(part.name in frozen for part in group.parts)], state)
        groups = [group for group in self.groups if self._holds_all(group, {**parameters, **update.idle, **buffers})]
        # A unit may feed a layer without a gradient now, such as another task's head: it is read, but not written.
        read = {c.weight.name: update.idle.get(c.weight.name) for group in groups for c in group.leaving}
        tensors = parameters | buffers | {name: weight for name, weight in read.items() if weight is not None}
        touched = [part.name for group in groups for part in group.parts]
        check_moments(update.moments, {name: parameters[name] for name in touched if name in parameters})
        due = {group.name: step for group in groups if self._needs_activations(step := self._tick(group, state))}
        groups = [group for group in groups if group.name in due]
        if due and self.scheduled and update.skipped is not None and bool(update.skipped):
            for group in groups:  # the next step is due instead
                self._tick(group, state, -1)
            self._forget(groups, state)  # what was seen may not be finite
            self._listen()
            return
        if self._wrapper is not None:
            sums = [tensor for group in groups for tensor in state[_activity(group)].values()]
            sum_over_ranks([(tensor, [ranks_of(self._wrapper.process_group, tensor.device.type)]) for tensor in sums])
        activities = {group.name: self._take_activity(group, state) for group in groups}
        seen = self._take_seen({group.name for group in groups})
        groups = [group for group in groups if not any(part.name in update.idle for part in group.entering)]
        groups = self._observed_of(groups, seen, state)
        strength, doomed = per_member(strength, len(self._members) + 1), []
        for group in groups:
            choice = self._choose(group, due[group.name], activities[group.name], tensors, state, strength)
            if choice is not None:
                doomed.append((group, choice))
        # A weight from one new unit to another must be 0: so the outgoing weights are written last.
        for group, choice in doomed:
            fresh = self._fresh(group, tensors, choice)
            reset_units(group, group.entering, tensors, update.moments, choice.which, choice.chosen, fresh)
        for group, choice in doomed:
            leaving = [consumer.weight for consumer in group.leaving if consumer.weight.name in parameters]
            reset_units(group, leaving, tensors, update.moments, choice.which, choice.chosen)
        self._listen()

    def _check(self, optimizers: Sequence[Optimizer]) -> None:
        buffers = {name: self._module.get_buffer(name) for name in self._buffers}
        for optimizer in optimizers:
            for group in self.groups:
                self._holds_all(group, {**self._trainable(held_by(optimizer)), **buffers})

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        for recorder in self._recorders:
            recorder.recall()
        self._listen()

    def describe(self) -> str:
        """The table of parameters, then the groups of units that may be replaced, then the skipped layers."""
        rows = [("layer", "units", "entering", "leaving")]
        for group in self.groups:
            entering = " ".join(part.name for part in group.entering)
            rows.append((group.name, str(group.size), entering, " ".join(c.weight.name for c in group.leaving)))
        rows += [(skipped.layer, "-", f"skipped: {skipped.reason}", "") for skipped in self.skipped]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)
        return f"{super().describe()}\n\n" + "\n".join(line.rstrip() for line in lines)

    def _holds_all(self, group: UnitGroup, tensors: Tensors) -> bool:
        """Whether an optimizer holds all of a group's parameters; if some are frozen, the group is not changed."""
        absent = [part.name for part in group.parts if part.name not in tensors]
        present = [part.name for part in group.parts if part.name in tensors and part.name in self.parameters]
        if absent and present and all(self.parameters[name].requires_grad for name in absent):
            raise ValueError(
                f"expected the units of {group.name!r} whole in one optimizer, got {present} in this one and not "
                f"{absent}: give it all (in groups if step sizes differ), or pass roles={{{absent[0]!r}: None}}"
            )
        return not absent

    def _tick(self, group: UnitGroup, state: State, count: int = 1) -> int:
        # One counter per group, on the host: a network's groups may be split between optimizers.
        return int(state[GLOBAL]["steps"][self._places[group.name]].add_(count))

    def _listen(self) -> None:
        steps = dict(zip((group.name for group in self.groups), self.state[GLOBAL]["steps"].tolist(), strict=True))
        for recorder in self._recorders:
            recorder.enabled = self._needs_activations(steps[recorder.group.name] + 1)

    def _forget(self, groups: Collection[UnitGroup], state: State) -> None:
        """Discard what was observed of these groups since the last step."""
        for group in groups:
            torch._foreach_zero_(list(state[_activity(group)].values()))
        self._take_seen({group.name for group in groups})

    def _take_activity(self, group: UnitGroup, state: State) -> Activity:
        sums = state[_activity(group)]
        magnitude = sums["magnitude"] / sums["forwards"]
        # Without a finite forward pass the mean is NaN, which must not enter the averages.
        seen = magnitude.isfinite().all(-1, keepdim=True)
        magnitude = torch.where(seen, magnitude, 0.0)
        mean = torch.where(seen, sums["mean"] / sums["forwards"], 0.0) if self.needs_mean else sums["mean"]
        torch._foreach_zero_(list(sums.values()))
        return Activity(magnitude, mean, seen)

    def _take_seen(self, groups: Collection[str]) -> dict[str, bool]:
        """Those of the groups that had a forward pass since the last step, and whether it had examples."""
        seen: dict[str, bool] = {}
        for recorder in self._recorders:
            if recorder.saw is not None and (name := recorder.group.name) in groups:
                seen[name] = seen.get(name, False) or recorder.saw
                recorder.saw = None
        return seen

    def _observed_of(self, groups: list[UnitGroup], seen: Mapping[str, bool], state: State) -> list[UnitGroup]:
        """The groups with activations; for the others, whose units would all look dead, the step does not count.

        Raises:
            RuntimeError: if there was no forward pass since the beginning.
        """
        self._has_seen |= bool(seen)
        if groups and not self._has_seen:
            raise RuntimeError(
                f"expected activations since the last step, got none: {type(self).__name__} sees forward passes in "
                "training mode and with gradients, after attach() or observe(); call it before the network is compiled"
            )
        if self._wrapper is not None:  # another rank may have called the layer
            return groups
        for group in groups:
            if not seen.get(group.name):
                self._tick(group, state, -1)
        if new := {group.name for group in groups} - seen.keys() - self._named_unseen:
            self._named_unseen |= new
            warnings.warn(
                f"expected activations of all units that are trained, got none of those of {', '.join(sorted(new))} in "
                f"this step: units without them are not replaced. {type(self).__name__} sees forward passes in "
                "training mode and with gradients, of the layers in describe(). Call train() after an evaluation; if "
                "several layers, such as heads, take turns, name each: "
                'units=[("body", "heads.0"), ("body", "heads.1")]',
                stacklevel=2,
            )
        return [group for group in groups if seen.get(group.name)]

    def _fresh(self, group: UnitGroup, tensors: Tensors, choice: Choice) -> Tensor:
        """New incoming weights for the candidates, ``(members…, k, *shape of one unit's weights)``."""
        weight, members = tensors[group.entering[0].name], len(self._members)
        draw = self._initializers[group.name]
        fresh = weight.new_zeros((*choice.which.shape, *weight.shape[members + 1 :]), device="cpu")
        counts = choice.counts or [fresh.shape[members]] * len(self._generators)
        for rows, count, random in zip(fresh if members else [fresh], counts, self._generators, strict=True):
            if count:
                draw(rows[:count], random)
        return fresh.to(weight.device, non_blocking=True)

    def _on_host(self, strength: Strength) -> Strength:
        """The strength on the host: if it is on a device, a copy that is made once for each new strength."""
        if not isinstance(strength, Tensor) or strength.device.type == "cpu":
            return strength
        if self._host_strength[0] is not self._strength:
            self._host_strength = (self._strength, torch.as_tensor(self._strength).cpu())
        return per_member(self._host_strength[1], len(self._members) + 1)

    def _zeros(self, group: UnitGroup, *shape: int) -> Tensor:
        """Zeros ``(members…, *shape)`` for a group's state, in at least single precision."""
        weight = self.parameters[group.entering[0].name]
        return torch.zeros(*self._members, *shape, dtype=working_dtype(weight), device=weight.device)


def _activity(group: UnitGroup) -> str:
    return f"activity of {group.name}"
