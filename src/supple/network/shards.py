"""This rank's shard of a parameter: power iteration and norms that never gather the whole parameter."""

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from supple.kernels.power_iteration import TINY, normalized, prepare_, working_dtype
from supple.kernels.sharding import Summing, is_sharded, ranks_of
from supple.network.roles import Role

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def pieces(roles: Mapping[str, Role], parameters: Mapping[str, nn.Parameter]) -> dict[str, "Piece"]:
    """This rank's piece of each sharded parameter, by name; empty for an ordinary network.

    Raises:
        ValueError: for FSDP1's flat parameters, and for a DTensor without a shard or copy on this rank.
    """
    for name, parameter in parameters.items():
        if getattr(parameter, "_is_flat_param", False) or getattr(parameter, "_fsdp_flattened", False):
            raise ValueError(
                f"expected parameters with their shapes, got the flat {name!r} of FullyShardedDataParallel (FSDP1): "
                "shard with FSDP2's torch.distributed.fsdp.fully_shard instead"
            )
    return {name: Piece(name, roles[name], p) for name, p in parameters.items() if is_sharded(p)}


class Piece:
    """The part of one parameter on this rank, and its position in the whole parameter.

    It is used as one matrix with rows and columns. If a tensor holds several matrices in groups, their rows are stacked
    (in a transposed convolution: their columns are side by side). Their vectors ``(groups, n)`` are zero for every row
    or column that belongs to another group.
    """

    def __init__(self, name: str, role: Role, parameter: "DTensor") -> None:
        mesh, placements = parameter.device_mesh, parameter.placements
        if mesh.get_coordinate() is None or any(placement.is_partial() for placement in placements):
            raise ValueError(
                f"expected a parameter of which this rank has a shard or a copy, got {name!r} as {placements} on "
                f"{mesh}: shard it with fully_shard() or distribute_tensor(), and build this on the ranks of its mesh"
            )
        sharded = [(dim, getattr(p, "dim", None)) for dim, p in enumerate(placements) if mesh.size(dim) > 1]
        sharded = [(dim, tensor_dim) for dim, tensor_dim in sharded if tensor_dim is not None]
        ranks = {dim: ranks_of(mesh.get_group(dim), mesh.device_type) for dim, _ in sharded}
        self._ranks = list(ranks.values())
        self._role, self._vector_index = role, None
        if role.kind == "vector" and role.layout:
            if role.layout != role.shape:
                raise ValueError(
                    f"expected the sharded {name!r} of shape {role.shape} to hold its vectors in rows, got the layout "
                    f"{role.layout}: leave it out with roles={{{name!r}: None}}"
                )
            self._vector_index = _positions(parameter, [0])
        if role.kind == "matrix":
            outer, middle = _boundaries(name, role)
            rows = range(outer, middle) if role.transposed else range(outer)
            self._boundaries = outer, middle
            self._ranks_of_a_row = [ranks[dim] for dim, tensor_dim in sharded if tensor_dim not in rows]
            self._row_mask, self._column_mask, self._column_index = self._find_place(parameter)

    def total(self, part: Tensor) -> Summing:
        """The sum of ``part`` over all pieces; its gradient is that of this piece's part."""
        whole = part.detach().clone()
        yield whole, self._ranks
        return whole + (part - part.detach())

    def norms(self, vectors: Tensor) -> Summing:
        """The norm of each whole vector, ``(1,)`` or ``(groups, 1)``, from this rank's entries.

        These are ``(n,)``, or ``(rows, n)`` for several vectors.
        """
        squares = self.squares(vectors).unsqueeze(-1)
        yield squares, self._ranks
        return squares.sqrt()

    def squares(self, vectors: Tensor) -> Tensor:
        """This rank's part of the squared norm of each whole vector, ``()`` or ``(groups,)``."""
        squares = vectors.square().sum(-1)
        if self._vector_index is None:
            return squares
        rows = self._vector_index.to(squares.device)
        return squares.new_zeros(self._role.layout[0]).index_add(0, rows, squares)

    def vectors(self, tensor: Tensor) -> Tensor:
        """This rank's part of the vectors, ``(n,)``, or ``(rows, n)`` for several."""
        return tensor if self._vector_index is not None else tensor.flatten()

    def of_vectors(self, factors: Tensor) -> Tensor:
        """The factors of this rank's rows, from one factor per whole vector, ``(1,)`` or ``(groups, 1)``."""
        return factors if self._vector_index is None else factors[self._vector_index.to(factors.device)]

    def half_iteration(self, weight: Tensor, v: Tensor, restart: Tensor, iterations: int = 1) -> Summing:
        """u for this rank's rows ``(groups, rows)``, and w = Wᵀu = σv, after the power iterations.

        w is whole and equal on all ranks. u is normalized after the sum that gives w, so that the sums for w and for
        the norm of u share a message. If rows are whole on a rank, each iteration needs only this one message.
        """
        for _ in range(iterations - 1):
            _, w = yield from self.half_iteration(weight, v, restart)
            v = prepare_(normalized(w), restart)
        matrix = self._matrix(weight.to(working_dtype(weight)))
        u = self._times(matrix, v.to(matrix.dtype))
        if self._ranks_of_a_row:
            yield u, self._ranks_of_a_row
        copies = math.prod(len(ranks.ranks) for ranks in self._ranks_of_a_row)
        sums = torch.cat([self._spread(_times(matrix.mT, u)), u.square().sum(-1, keepdim=True) / copies], -1)
        yield sums, self._ranks
        inverse = 1 / sums[:, -1:].sqrt().clamp_min(TINY)
        return u * inverse, (sums[:, :-1] * inverse).view_as(v)

    def stretch(self, tensor: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """This piece's part of uᵀWv of each matrix, ``(groups,)``; ``u`` for its rows, ``v`` whole."""
        return (self._times(self._matrix(tensor).to(u.dtype), v) * u).sum(-1)

    def add_outer_(self, tensor: Tensor, u: Tensor, v: Tensor) -> None:
        """Add ``u vᵀ`` to the piece in place; ``u`` for its rows, ``v`` whole."""
        u, v = u.mT.to(tensor.dtype), self._at_columns(v).to(tensor.dtype)  # (rows, groups) and (groups, columns)
        if self._boundaries == (1, 1) and tensor.ndim == 2:
            if u.shape[-1] == 1:
                tensor.addcmul_(u, v)
            else:
                tensor.addmm_(u, v)
            return
        outer = u * v if u.shape[-1] == 1 else u @ v
        if self._role.transposed:
            a, b, c = self._sizes(tensor)
            outer = outer.view(b, a, c).transpose(0, 1)
        tensor.add_(outer.reshape(tensor.shape))

    def _matrix(self, tensor: Tensor) -> Tensor:
        """The piece as a matrix ``(rows, columns)``."""
        a, b, c = self._sizes(tensor)
        if self._role.transposed:
            return tensor.reshape(a, b, c).transpose(0, 1).reshape(b, a * c)
        return tensor.reshape(a, c)

    def _times(self, matrix: Tensor, v: Tensor) -> Tensor:
        """The part of Wv ``(groups, rows)`` from this rank's columns."""
        u = _times(matrix, self._at_columns(v))
        return u if self._row_mask is None else u * self._row_mask.to(u.device)

    def _at_columns(self, v: Tensor) -> Tensor:
        """The entries ``(groups, columns)`` of a whole v for this rank's columns."""
        v = v.view(self._role.sizes[0], -1)
        if self._column_index is not None:
            v = v[:, self._column_index.to(v.device)]
        return v if self._column_mask is None else v * self._column_mask.to(v.device)

    def _spread(self, w: Tensor) -> Tensor:
        """Put ``(groups, columns)`` at their positions in a whole vector that is zero elsewhere."""
        if self._column_mask is not None:
            w = w * self._column_mask.to(w.device)
        if self._column_index is None:
            return w
        return w.new_zeros(len(w), self._role.sizes[2]).index_add_(1, self._column_index.to(w.device), w)

    def _sizes(self, tensor: Tensor) -> tuple[int, int, int]:
        outer, middle = self._boundaries
        shape = tensor.shape
        return math.prod(shape[:outer]), math.prod(shape[outer:middle]), math.prod(shape[middle:])

    def _find_place(self, parameter: "DTensor") -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Masks ``(groups, ...)`` of each row's and each column's group, and the columns' positions in a whole v."""
        (groups, first, second, *_), (outer, middle) = self._role.layout, self._boundaries
        if groups == 1 and not self._ranks_of_a_row:
            return None, None, None
        grouped, size, others = range(outer), first, range(middle, parameter.ndim)
        if self._role.side_by_side:
            grouped, size, others = range(outer, middle), second, range(outer)
        positions, inner = _positions(parameter, grouped), _positions(parameter, others)
        mask = positions // size == torch.arange(groups, device=positions.device).unsqueeze(-1) if groups > 1 else None
        if self._role.side_by_side or not self._role.transposed:
            return mask, None, inner if self._ranks_of_a_row else None
        kernel = math.prod(parameter.shape[middle:])
        columns = (positions % size).unsqueeze(-1) * kernel + inner
        return None, None if mask is None else mask.repeat_interleave(len(inner), -1), columns.flatten()


def _boundaries(name: str, role: Role) -> tuple[int, int]:
    """How many leading tensor dimensions make up (groups, the layout's next dimension), and how many these plus, in a
    transposed layout, the rows."""
    if role.side_by_side:
        return 1, 2
    groups, first, second, *_ = role.layout
    ends = range(len(role.shape), -1, -1)
    outer = next((end for end in ends if math.prod(role.shape[:end]) == groups * first), None)
    if outer is not None and not role.transposed:
        return outer, outer
    middle = next((end for end in ends if math.prod(role.shape[:end]) == groups * first * second), None)
    if outer is None or middle is None:
        raise ValueError(
            f"expected the sharded {name!r} of shape {role.shape} to have dimensions that make up groups, rows and "
            f"columns, got the layout {role.layout}: leave it out with roles={{{name!r}: None}}"
        )
    return outer, middle


def _positions(parameter: "DTensor", dims: Iterable[int]) -> Tensor:
    """The positions of the piece's entries in the whole tensor, with ``dims`` flattened into one."""
    from torch.distributed.tensor import Replicate, distribute_tensor

    positions = torch.zeros(1, dtype=torch.int64, device=parameter.device)
    for dim in dims:
        size = [-1 if d == dim else 1 for d in range(parameter.ndim)]
        along = torch.arange(parameter.shape[dim], device=parameter.device).view(size)
        placements = [p if getattr(p, "dim", None) == dim else Replicate() for p in parameter.placements]
        shard = distribute_tensor(along, parameter.device_mesh, placements, src_data_rank=None).to_local()
        positions = (positions.unsqueeze(-1) * parameter.shape[dim] + shard.flatten().to(positions.device)).flatten()
    return positions


def _times(matrix: Tensor, vectors: Tensor) -> Tensor:
    """The matrix times each of ``(groups, n)``; a single vector, the usual case, uses a matrix-vector product."""
    return torch.mv(matrix, vectors[0]).unsqueeze(0) if len(vectors) == 1 else vectors @ matrix.mT
