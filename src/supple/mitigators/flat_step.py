"""One step of the spectral regularizer for all of a network's parameters at once, in few operators.

On a GPU every operator costs a launch, whatever its size. So the singular vectors of all matrices are concatenated into
one tensor to be scaled, and all stretches into one tensor to compute how much each is pulled. This takes three
operators per matrix (two products and the rank-one update), and about thirty more for the network.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from supple.kernels.power_iteration import RESTART, TINY, half_iteration, normalized, prepare_, product, working_dtype
from supple.network.roles import Role

Amount = Callable[[Sequence[str], Tensor, Tensor | None], Tensor]
"""``amount(names, stretches, is_matrix)``: the factor of each stretch's derivative. ``stretches`` has one entry per
matrix or vector, and ``is_matrix`` is 1 for matrices and 0 for vectors; or one entry per gain, and ``is_matrix`` is
None."""


MAX_LAYOUTS = 8
"""The maximum number of layouts kept: a network that skips random layers has other gradients in every step."""


@dataclass(frozen=True)
class _Layout:
    """Where each parameter's part is in the flat tensors."""

    matrices: list[str]
    vectors: list[str]
    scales: list[str]
    row_sizes: list[int]
    """The lengths of all u."""
    sizes: list[int]
    """The lengths of all v, then of all vectors that are pulled."""
    row_stretch: Tensor
    """For each entry of all u, the index of its stretch."""
    stretch: Tensor
    """The same for all v and vectors."""
    is_matrix: Tensor
    """1 for the stretches of matrices, 0 for those of vectors."""


class FlatStep:
    """Takes the steps of one method.

    Args:
        roles: the parameters' roles by name.
        power_iterations: the number per step.
    """

    def __init__(self, roles: Mapping[str, Role], power_iterations: int) -> None:
        self._roles, self._power_iterations = roles, power_iterations
        self._layouts: dict[tuple[torch.device, tuple[str, ...]], _Layout] = {}

    def pull(
        self,
        parameters: Mapping[str, Tensor],
        into: Mapping[str, Tensor],
        state: Mapping[str, dict[str, Tensor]],
        amount: Amount,
    ) -> None:
        """Add ``amount`` times each stretch's derivative by its parameter to ``into``, and update the vectors v.

        The parameters are on one device and computed in one data type; none is sharded or has members.
        """
        layout = self._layout_of(parameters)
        if layout.scales:
            self._pull_scales(layout.scales, parameters, into, amount)
        if not layout.sizes:
            return
        roles, matrices = [self._roles[name] for name in layout.matrices], layout.matrices
        weights = [role.matrices(parameters[name]) for role, name in zip(roles, matrices, strict=True)]
        vs, restarts = ([state[name][key] for name in matrices] for key in ("v", "restart"))
        vectors = [_wide(self._roles[name].vectors(parameters[name])) for name in layout.vectors]
        ws: list[Tensor] = []
        us: Sequence[Tensor] = []
        if matrices:
            starts = vs
            for _ in range(self._power_iterations - 1):
                starts = [
                    prepare_(normalized(half_iteration(_wide(weight), v, restart)[1]), restart)
                    for weight, v, restart in zip(weights, starts, restarts, strict=True)
                ]
            # The network's data type may have changed since v was stored.
            us = [
                product(_wide(weight), v.to(working_dtype(weight))) for weight, v in zip(weights, starts, strict=True)
            ]
            inverse = _norms(us).clamp_min_(TINY).reciprocal_()
            flat = torch.cat([u.flatten() for u in us]).mul_(inverse.index_select(0, layout.row_stretch))
            us = _like(us, flat.split_with_sizes(layout.row_sizes))
            ws = [product(_wide(weight).mT, u) for weight, u in zip(weights, us, strict=True)]
        whole = [*ws, *vectors]
        stretches, flat = _norms(whole), torch.cat([part.flatten() for part in whole])
        inverse = stretches.clamp_min(TINY).reciprocal_()
        factors = amount([*matrices, *layout.vectors], stretches, layout.is_matrix) * inverse
        pulls = _like(whole, (flat * factors.index_select(0, layout.stretch)).split_with_sizes(layout.sizes))
        for role, name, u, pull in zip(roles, matrices, us, pulls, strict=False):
            role.add_outer_(into[name], u, pull)
        _add([into[name] for name in layout.vectors], pulls[len(matrices) :])
        if matrices:
            units = flat.mul_(inverse.index_select(0, layout.stretch)).nan_to_num_(0.0)
            torch._foreach_copy_(vs, _like(ws, units.split_with_sizes(layout.sizes)))
            torch._foreach_add_(vs, restarts, alpha=RESTART)

    def _pull_scales(
        self, names: list[str], parameters: Mapping[str, Tensor], into: Mapping[str, Tensor], amount: Amount
    ) -> None:
        gains = [_wide(self._roles[name].gains(parameters[name])) for name in names]
        changes = amount(names, torch.cat(gains), None)
        _add([into[name] for name in names], changes.split([len(gain) for gain in gains]))

    def _layout_of(self, parameters: Mapping[str, Tensor]) -> _Layout:
        device = next(iter(parameters.values())).device
        key = (device, tuple(parameters))
        if key not in self._layouts:
            if len(self._layouts) == MAX_LAYOUTS:
                del self._layouts[next(iter(self._layouts))]
            names: dict[str, list[str]] = {"matrix": [], "vector": [], "scale": []}
            for name in parameters:
                names[self._roles[name].kind].append(name)
            matrices, vectors, scales = names.values()
            shapes = [self._roles[name].sizes for name in matrices]
            vector_shapes = [self._roles[name].layout or (1, parameters[name].numel()) for name in vectors]
            rows = [(groups, rows) for groups, rows, _ in shapes]
            columns = [*((groups, columns) for groups, _, columns in shapes), *vector_shapes]
            row_sizes, sizes = ([groups * size for groups, size in pairs] for pairs in (rows, columns))
            owners = _owners(rows, device), _owners(columns, device)
            kinds = [sum(groups for groups, _ in pairs) for pairs in (rows, vector_shapes)]
            is_matrix = torch.tensor([1.0] * kinds[0] + [0.0] * kinds[1], dtype=torch.float32, device=device)
            self._layouts[key] = _Layout(matrices, vectors, scales, row_sizes, sizes, *owners, is_matrix)
        return self._layouts[key]


def _owners(shapes: Sequence[tuple[int, ...]], device: torch.device) -> Tensor:
    lengths = [size for groups, size in shapes for _ in range(groups)]
    return torch.repeat_interleave(torch.tensor(lengths, dtype=torch.long, device="cpu")).to(device)


def _wide(tensor: Tensor) -> Tensor:
    """The tensor in at least single precision; only half precision is copied, one matrix at a time."""
    return tensor.to(working_dtype(tensor))


def _norms(tensors: Sequence[Tensor]) -> Tensor:
    """The norms of all vectors: ``(n,)`` is one, ``(groups, n)`` several (hundreds in a depthwise convolution)."""
    singles = [tensor for tensor in tensors if tensor.ndim == 1]
    of_singles = iter(torch._foreach_norm(singles) if singles else ())
    return torch.cat(
        [torch.linalg.vector_norm(t, dim=-1) if t.ndim > 1 else next(of_singles).unsqueeze(0) for t in tensors]
    )


def _like(tensors: Sequence[Tensor], flat: Sequence[Tensor]) -> list[Tensor]:
    """The pieces of a flat tensor, with the shapes of the first ``len(flat)`` of ``tensors``."""
    return [piece.view_as(tensor) if tensor.ndim > 1 else piece for tensor, piece in zip(tensors, flat, strict=False)]


def _add(into: list[Tensor], pulls: Sequence[Tensor]) -> None:
    if into:
        torch._foreach_add_(into, [pull.view_as(tensor) for tensor, pull in zip(into, pulls, strict=True)])
