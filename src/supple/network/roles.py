"""The role of a parameter: a matrix that multiplies, a vector that is added, or a scale of units."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from supple.kernels.power_iteration import spectral_norm, without_autocast, working_dtype

Kind = Literal["matrix", "vector", "scale"]


@dataclass(frozen=True)
class Role:
    """The role of one parameter, and how to view it as matrices or as vectors.

    All methods accept tensors with any number of leading dimensions before the parameter's own, such as a population's
    members.
    """

    kind: Kind | Literal["other", "unknown"]
    """``matrix`` (multiplicative), ``vector`` (additive), ``scale`` (element-wise multiplicative), ``other`` (known to
    be none of these) or ``unknown``. Methods that depend on the kind leave out ``other`` and ``unknown``; the rest
    treat all parameters alike."""
    shape: tuple[int, ...]
    """The parameter's shape in one network."""
    layout: tuple[int, ...] = ()
    """For a matrix: the shape (groups, out, in, *kernel) of the same numbers, where ``groups`` matrices follow each
    other in the tensor. For a vector: (groups, n) if it holds several, otherwise ()."""
    transposed: bool = False
    """Whether the layout is (groups, in, out, *kernel) instead, as in transposed convolutions."""
    side_by_side: bool = False
    """Whether transposed matrices without a kernel are side by side: the tensor is (in, groups, out)."""
    offset: float = 0.0
    """For a scale: the number added to the entries to get the gains, 1 if the gain is ``1 + weight``."""

    def __post_init__(self) -> None:
        fits = math.prod(self.layout) == math.prod(self.shape)
        if self.layout and not (fits and len(self.layout) >= (3 if self.kind == "matrix" else 2)):
            expected = "(groups, out, in, ...)" if self.kind == "matrix" else "(groups, n)"
            raise ValueError(
                f"expected a layout {expected} with as many entries as the shape {self.shape}, got {self.layout}: "
                "correct it"
            )

    @property
    def sizes(self) -> tuple[int, int, int]:
        """The number of matrices, and of their rows and columns."""
        groups, first, second, *kernel = self.layout
        rows, inputs = (second, first) if self.transposed else (first, second)
        return groups, rows, inputs * math.prod(kernel)

    def matrices(self, tensor: Tensor) -> Tensor:
        """``(..., *shape)`` as matrices ``(..., groups, out, in · kernel)``; a view if the layout allows it.

        A single matrix has no dimension for groups.
        """
        if self._is_plain:
            return tensor
        split, rows = self._split(tensor)
        return (
            (split.transpose(rows, rows + 1) if self.transposed else split)
            .flatten(rows + 1)
            .squeeze(rows - 1 if self.layout[0] == 1 else ())
        )

    def by_position(self, tensor: Tensor) -> Tensor:
        """``(..., *shape)`` as a matrix for each position of a kernel, ``(..., groups, *kernel, out, in)``.

        A view of a contiguous tensor.
        """
        split, rows = self._split(tensor)
        matrices = split.movedim((rows, rows + 1), (-2, -1))
        return matrices.mT if self.transposed else matrices

    def stretch(self, tensor: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """uᵀWv of each matrix, ``(..., groups)``, or ``(...)`` for a single one."""
        return ((self.matrices(tensor).to(u.dtype) @ v.unsqueeze(-1)).squeeze(-1) * u).sum(-1)

    def add_outer_(self, tensor: Tensor, u: Tensor, v: Tensor) -> None:
        """Add ``u vᵀ`` to each of the matrices in place, for any strides, without a temporary of the tensor's size.

        Exception: if the layout joins dimensions whose strides allow no view, it changes a copy and writes it back.

        ``tensor`` is ``(..., *shape)``; ``u`` and ``v`` are ``(..., groups, out)`` and ``(..., groups, in · kernel)``,
        without ``groups`` for a single matrix.
        """
        if u.dtype != tensor.dtype:
            u, v = u.to(tensor.dtype), v.to(tensor.dtype)
        if self._is_plain:
            tensor.addcmul_(u.unsqueeze(-1), v.unsqueeze(-2))
            return
        split, rows = self._split(tensor)
        groups, first, second, *kernel = self.layout
        outer = (*split.shape[: rows - 1], groups)
        if self.transposed:
            u, v = u.view(*outer, 1, second, *(1,) * len(kernel)), v.view(*outer, first, 1, *kernel)
        else:
            u, v = u.view(*outer, first, 1, *(1,) * len(kernel)), v.view(*outer, 1, second, *kernel)
        self._write_back(tensor, split.addcmul_(u, v))

    def fold(self, matrices: Tensor, like: Tensor) -> Tensor:
        """The inverse of :meth:`matrices`: reshape matrices to the shape of the tensor ``like``."""
        if self._is_plain:
            return matrices
        groups, first, second, *kernel = self.layout
        leading = self._leading(like)
        if not self.transposed:
            return matrices.reshape(like.shape)
        if self.side_by_side:
            return matrices.reshape(*leading, groups, second, first).movedim(-1, -3).reshape(like.shape)
        return (
            matrices.reshape(*leading, groups, second, first, *kernel)
            .transpose(-2 - len(kernel), -1 - len(kernel))
            .reshape(like.shape)
        )

    def multiply_(self, tensor: Tensor, factors: Tensor) -> None:
        """Multiply each of the matrices in place by its factor, ``(..., groups)``, or ``(...)`` for a single one."""
        split, rows = self._split(tensor)
        factors = factors.reshape(*split.shape[:rows], *(1,) * (split.ndim - rows))
        self._write_back(tensor, split.mul_(factors.to(split.dtype)))

    def vector(self, tensor: Tensor) -> Tensor:
        """``(..., *shape)`` as one vector ``(..., n)``; shorter for a shard."""
        return tensor if len(self.shape) == 1 else tensor.reshape(*self._leading(tensor), -1)

    def vectors(self, tensor: Tensor) -> Tensor:
        """``(..., *shape)`` as additive vectors: ``(..., n)``, or ``(..., groups, n)`` for several."""
        return tensor.reshape(*self._leading(tensor), *self.layout) if self.layout else self.vector(tensor)

    def gains(self, tensor: Tensor) -> Tensor:
        """``(..., *shape)`` as multiplicative gains ``(..., n)``."""
        return self.vector(tensor) + self.offset if self.offset else self.vector(tensor)

    def spectral_norms(self, tensor: Tensor) -> Tensor:
        """The exact largest singular value of each matrix; the norm of each vector; a scale's largest ``|gain|``.

        Also exact under autocast.
        """
        with without_autocast(tensor):
            if self.kind == "matrix":
                return spectral_norm(self.matrices(tensor))
            order, values = (math.inf, self.gains(tensor)) if self.kind == "scale" else (2, self.vectors(tensor))
            norms: Tensor = torch.linalg.vector_norm(values.to(working_dtype(tensor)), ord=order, dim=-1)
            return norms

    @property
    def _is_plain(self) -> bool:
        """Whether the tensor itself is one matrix."""
        return len(self.shape) == 2 and self.layout[0] == 1 and not self.transposed

    def _write_back(self, tensor: Tensor, split: Tensor) -> None:
        """Copy ``split`` back into ``tensor``, if it is a copy because the strides do not allow a view."""
        groups, first, *rest = self.layout
        joins = [n for n in (groups * first, *rest) if n > 1] != [n for n in self.shape if n > 1]
        if joins and not self.side_by_side:
            tensor.copy_(split.reshape(tensor.shape))

    def _leading(self, tensor: Tensor) -> torch.Size:
        return tensor.shape[: tensor.ndim - len(self.shape)]

    def _split(self, tensor: Tensor) -> tuple[Tensor, int]:
        """The tensor as (..., *layout), a view if its strides allow it, and the dimension after the groups."""
        leading = self._leading(tensor)
        if self.side_by_side:
            return tensor.unflatten(-1, (self.layout[0], -1)).movedim(-2, -3), len(leading) + 1
        return tensor.reshape(*leading, *self.layout), len(leading) + 1


Overrides = Mapping[str, Kind | Role | None]
"""Roles that replace those found, by parameter name; None leaves a parameter out."""
