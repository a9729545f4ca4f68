"""The hidden units of a network: which weights enter each, which leave it, and how to replace some of them."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from supple.errors import known
from supple.network.graph import Layer, Path, Stop, entries_a_unit, inner_size, outer_size, paths, unwrapped
from supple.network.population import Population, module_of

Units = Sequence[Sequence[str]]
"""For each group the names of its modules: the layer that computes it, norms if any, and the layer it feeds. Chains
that differ only in the last one are one group that feeds several layers."""

MOMENTS = frozenset(
    "exp_avg exp_avg_sq max_exp_avg_sq exp_inf momentum_buffer square_avg grad_avg acc_delta sum".split()  # noqa: SIM905 - a list of words reads better so
)
"""The state of torch's optimizers that has one entry per parameter entry and starts at zero: Adam and its variants,
SGD, RMSprop, Adadelta, Adagrad, Adamax, Muon."""


@dataclass(frozen=True)
class UnitEntries:
    """The entries of one parameter or buffer that belong to a group's units, in order along one dimension."""

    name: str
    value: float | None
    """The initial value for a new unit; None for random numbers."""
    dim: int = 0
    """The units' dimension in one network's tensor. Each unit has (its size / number of units) adjacent entries."""

    def by_unit(self, tensor: Tensor, size: int, members: int) -> Tensor:
        """``(members…, *shape)`` as ``(members…, units, ...)``, a view: writing to it changes ``tensor``."""
        view: Tensor = tensor.unflatten(members + self.dim, (size, -1))
        return view.movedim(members + self.dim, members)


@dataclass(frozen=True)
class Consumer:
    """A layer that a group's units feed."""

    path: str
    weight: UnitEntries
    bias: str | None
    spatial: int
    """The number of dimensions after the channels in its input: 0 for a linear layer."""


@dataclass(frozen=True)
class UnitGroup:
    """The units that one layer computes."""

    name: str
    """The layer's name."""
    size: int
    fan_in: int
    entering: tuple[UnitEntries, ...]
    """The layer's weight first; then its bias, and the norms' entries for each unit."""
    leaving: tuple[Consumer, ...]
    """The layers that the units feed; they all receive the same activations."""

    @property
    def parts(self) -> tuple[UnitEntries, ...]:
        return *self.entering, *(consumer.weight for consumer in self.leaving)


@dataclass(frozen=True)
class Skipped:
    """A layer whose units are not replaced, and why."""

    layer: str
    reason: str


def find_units(
    network: nn.Module | Population, units: Units | None = None
) -> tuple[tuple[UnitGroup, ...], tuple[Skipped, ...]]:
    """The groups of units that can be replaced one by one, and the reason why all other layers' units cannot.

    The search follows the output of every linear layer and convolution, in a ``torch.fx`` trace of the network, through
    operations that keep units separate (activations, dropout, norms, pooling, flattening) to the layers that receive
    it. It skips a group if its units are combined with others (residual addition, concatenation, attention), if its
    weights are used twice, inside modules that cannot be traced, and if it reaches the network's output.

    Args:
        network: any module, or a population.
        units: replaces the search. For each group the names of the layer that computes it, of the norms after it, and
            of the layer that it feeds: ``[("conv1", "norm1", "conv2"), ("conv2", "fc")]``. Of a layer that feeds
            several, such as actor and critic, or heads that take turns, name each of them:
            ``[("body", "actor"), ("body", "critic")]``.

    Raises:
        ValueError: if the network's forward pass cannot be traced, or if ``units`` do not fit this network's layers.

    >>> groups, skipped = find_units(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)))
    >>> [(group.name, group.size) for group in groups]
    [('0', 5)]
    >>> skipped
    (Skipped(layer='2', reason="reaches the network's output"),)
    """
    module = module_of(network)
    names = {id(part): name for name, part in module.named_modules()}
    if units is not None:
        return _merged([_given(dict(module.named_modules()), chain) for chain in units]), ()
    groups, skipped = [], []
    for layer, path in paths(unwrapped(module)):
        name = names[id(layer)]
        if isinstance(path, Stop):
            skipped.append(Skipped(name, str(path)))
        else:
            groups.append(_group(path, names))
    return tuple(groups), tuple(skipped)


def reset_units(
    group: UnitGroup,
    parts: Iterable[UnitEntries],
    tensors: Mapping[str, Tensor],
    moments: Mapping[str, Mapping[str, Tensor]],
    which: Tensor,
    chosen: Tensor,
    fresh: Tensor | None = None,
) -> None:
    """Write new values for the chosen units into ``parts`` of the group, and zero the optimizer's state of them.

    Works in place and never waits for the device: the number of candidate units is fixed.

    Args:
        group: the units.
        parts: which of its parts to write: ``group.entering``, or the weights of ``group.leaving`` (always zero).
        tensors: parameters and buffers by name, ``(members…, *shape)``.
        moments: the optimizer's state of each parameter; tensors of the parameter's shape are written.
        which: the candidate units, ``(members…, k)``, without repetition.
        chosen: whether to replace them, ``(members…, k)``.
        fresh: incoming weights for them, ``(members…, k, *shape of one unit's weights)``.
    """
    for part in parts:
        tensor = tensors[part.name]
        value = fresh if part.value is None else part.value
        assert value is not None, "the weight is among the parts, so fresh values are needed"
        write_rows(part.by_unit(tensor, group.size, which.ndim - 1), which, chosen, value)
        for moment in moments.get(part.name, {}).values():
            if moment.ndim:  # not the step counter, which all entries share
                write_rows(part.by_unit(moment, group.size, which.ndim - 1), which, chosen, 0.0)


def check_moments(moments: Mapping[str, Mapping[str, Tensor]], tensors: Mapping[str, Tensor]) -> None:
    """Check that the optimizer's state of these parameters can be reset entry by entry."""
    for name, tensor in tensors.items():
        for key, moment in moments.get(name, {}).items():
            if moment.ndim and (key not in MOMENTS or moment.shape != tensor.shape):
                raise ValueError(
                    f"expected optimizer state that is known entry by entry ({', '.join(sorted(MOMENTS))}), got "
                    f"{key!r} of shape {tuple(moment.shape)} for {name!r}: use an optimizer such as Adam or SGD"
                )


def redo_scores(magnitude: Tensor) -> Tensor:
    """ReDo's score of each unit: its mean |h| divided by its layer's average, from mean |h| ``(..., n)``.

    A small score means a dormant unit (Sokar et al., 2023, definition 3.1).
    """
    return magnitude / (magnitude.mean(-1, keepdim=True) + 1e-9)


def rows_of(tensor: Tensor, which: Tensor) -> Tensor:
    """The rows ``which`` ``(members…, k)`` of ``(members…, units, ...)``."""
    return tensor[_index(which)]


def write_rows(tensor: Tensor, which: Tensor, chosen: Tensor, value: Tensor | float) -> None:
    """Write ``value`` into the rows ``which`` of ``(members…, units, ...)``, where ``chosen``, in place.

    An indexed assignment changes the tensor and has a fixed size. ``tensor[..., mask].zero_()`` would change a copy.
    """
    index = _index(which)
    old = tensor[index]
    if isinstance(value, Tensor):
        value = value.view_as(old)
    tensor[index] = torch.where(chosen.view(*chosen.shape, *(1,) * (old.ndim - chosen.ndim)), value, old)


def _index(which: Tensor) -> tuple[Tensor, ...]:
    if which.ndim == 1:
        return (which,)
    return torch.arange(which.shape[0], device=which.device).unsqueeze(-1), which


def _merged(groups: Sequence[UnitGroup]) -> tuple[UnitGroup, ...]:
    """One group for each layer, which feeds all the layers named for it."""
    merged: dict[str, UnitGroup] = {}
    for group in groups:
        first = merged.setdefault(group.name, group)
        if first is group:
            continue
        (new,) = group.leaving
        if first.entering != group.entering:
            raise ValueError(
                f"expected the same norms after {group.name!r} in all its chains, got others before {new.path!r}: name "
                "only layers that receive the same activations"
            )
        if new in first.leaving:
            raise ValueError(f"expected each chain once, got {group.name!r} to {new.path!r} twice: leave one out")
        merged[group.name] = replace(first, leaving=(*first.leaving, new))
    return tuple(merged.values())


def _group(path: Path, names: Mapping[int, str]) -> UnitGroup:
    layer, name = path.layer, names[id(path.layer)]
    entering = [UnitEntries(f"{name}.weight", None)]
    if layer.bias is not None:
        entering.append(UnitEntries(f"{name}.bias", 0.0))
    for norm in path.norms:
        entering += _norm_parts(norm, names[id(norm)])
    size, leaving = outer_size(layer), []
    for consumer in path.consumers:
        to = names[id(consumer)]
        bias = None if consumer.bias is None else f"{to}.bias"
        spatial = 0 if isinstance(consumer, nn.Linear) else len(consumer.kernel_size)
        leaving.append(Consumer(to, UnitEntries(f"{to}.weight", 0.0, dim=1), bias, spatial))
    fan_in = layer.in_features if isinstance(layer, nn.Linear) else math.prod(layer.kernel_size) * inner_size(layer)
    return UnitGroup(name, size, fan_in, tuple(entering), tuple(leaving))


def _norm_parts(norm: nn.Module, name: str) -> Iterator[UnitEntries]:
    values = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
    held = dict([*norm.named_parameters(recurse=False), *norm.named_buffers(recurse=False)])
    return (UnitEntries(f"{name}.{key}", value) for key, value in values.items() if key in held)


def _given(modules: Mapping[str, nn.Module], chain: Sequence[str]) -> UnitGroup:
    """The group that a user named, checked as far as possible."""
    if isinstance(chain, str) or len(chain) < 2:
        raise ValueError(
            f"expected units=[(entering layer, norms..., leaving layer), ...], got {chain!r}: name two layers"
        )
    first, *norms, last = (modules[known(name, modules, "module of this network")] for name in chain)
    for name, layer in ((chain[0], first), (chain[-1], last)):
        if not isinstance(layer, Layer):
            raise ValueError(
                f"expected a linear layer or a convolution, got {type(layer).__name__} as {name!r}: name another"
            )
    assert isinstance(first, Layer)
    assert isinstance(last, Layer)
    size, width = outer_size(first), inner_size(last)
    fits = width % size == 0 if isinstance(last, nn.Linear) else width == size and last.groups == 1
    if not fits:
        raise ValueError(
            f"expected {chain[-1]!r} to receive the {size} units of {chain[0]!r}, got {width} inputs: name another"
        )
    for name, norm in zip(chain[1:-1], norms, strict=True):
        if entries_a_unit(norm, size) is None:
            raise ValueError(f"expected norms of {size} units between the layers, got {name!r}: leave it out")
    return _group(Path(first, tuple(norms), (last,)), {id(modules[name]): name for name in chain})
