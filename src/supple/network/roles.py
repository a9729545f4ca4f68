"""The part that a parameter plays: it multiplies as a matrix, it is added as a vector, or it scales units."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from supple.kernels.power_iteration import spectral_norm, without_autocast, working_dtype

Kind = Literal["matrix", "vector", "scale"]


@dataclass(frozen=True)
class Role:
    """The part that one parameter plays, and how to see it as matrices or as a vector.

    All methods take tensors with any number of leading dimensions before the parameter's own, such as the members of a
    population.
    """

    kind: Kind | Literal["other", "unknown"]
    """``matrix`` (multiplicative), ``vector`` (additive) or ``scale`` (element-wise multiplicative). ``other`` is known
    to be none of these, of ``unknown`` nothing is known: methods to which the kind matters leave both out, the others
    treat all parameters alike."""
    shape: tuple[int, ...]
    """The parameter's shape in one network."""
    layout: tuple[int, ...] = ()
    """For a matrix: the same numbers read as (groups, out, in, *kernel), where groups separate matrices lie in the
    tensor one after the other. For a vector: (groups, n) where it holds several, otherwise nothing."""
    transposed: bool = False
    """Whether the layout is (groups, in, out, *kernel) instead, as in transposed convolutions."""
    side_by_side: bool = False
    """Whether transposed matrices without a kernel lie beside each other, the tensor being (in, groups, out)."""
    offset: float = 0.0
    """For a scale: what is added to the entries before they multiply, 1 where the gain is ``1 + weight``."""

    def __post_init__(self) -> None:
        fits = math.prod(self.layout) == math.prod(self.shape)
        if self.layout and not (fits and len(self.layout) >= (3 if self.kind == "matrix" else 2)):
            expected = "(groups, out, in, ...)" if self.kind == "matrix" else "(groups, n)"
            raise ValueError(
                f"expected a layout {expected} of as many entries as the shape {self.shape}, got {self.layout}"
            )

    @property
    def sizes(self) -> tuple[int, int, int]:
        """How many matrices, and their rows and columns."""
        groups, first, second, *kernel = self.layout
        rows, inputs = (second, first) if self.transposed else (first, second)
        return groups, rows, inputs * math.prod(kernel)

    def matrices(self, tensor: Tensor) -> Tensor:
        """``(..., *shape)`` as its matrices ``(..., groups, out, in · kernel)``; a view where the layout allows.

        One matrix alone has no dimension for groups.
        """
        if self._is_plain:
            return tensor
        split, rows = self._split(tensor)
        return (
            (split.transpose(rows, rows + 1) if self.transposed else split)
            .flatten(rows + 1)
            .squeeze(rows - 1 if self.layout[0] == 1 else ())
        )

    def stretch(self, tensor: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """uᵀWv of each matrix, ``(..., groups)``, or ``(...)`` for one alone."""
        return ((self.matrices(tensor).to(u.dtype) @ v.unsqueeze(-1)).squeeze(-1) * u).sum(-1)

    def add_outer_(self, tensor: Tensor, u: Tensor, v: Tensor) -> None:
        """Add ``u vᵀ`` to each of the matrices in place, whatever the tensor's strides, with no temporary of its size.

        But for a layout that joins dimensions whose strides do not allow it: those matrices are a copy, written back.

        ``tensor`` is ``(..., *shape)``; ``u`` and ``v`` are ``(..., groups, out)`` and ``(..., groups, in · kernel)``,
        without the groups for one matrix alone.
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
        """What :meth:`matrices` makes of a tensor, brought back to the shape of that tensor, ``like``."""
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
        """Multiply each of the matrices in place by its factor, ``(..., groups)``, or ``(...)`` for one alone."""
        split, rows = self._split(tensor)
        factors = factors.reshape(*split.shape[:rows], *(1,) * (split.ndim - rows))
        self._write_back(tensor, split.mul_(factors.to(split.dtype)))

    def vector(self, tensor: Tensor) -> Tensor:
        """``(..., *shape)`` as one vector ``(..., n)``; a piece of a sharded one as a shorter vector."""
        return tensor if len(self.shape) == 1 else tensor.reshape(*self._leading(tensor), -1)

    def vectors(self, tensor: Tensor) -> Tensor:
        """``(..., *shape)`` as the vectors that are added: ``(..., n)``, or ``(..., groups, n)`` for several."""
        return tensor.reshape(*self._leading(tensor), *self.layout) if self.layout else self.vector(tensor)

    def gains(self, tensor: Tensor) -> Tensor:
        """``(..., *shape)`` as the gains ``(..., n)`` that multiply."""
        return self.vector(tensor) + self.offset if self.offset else self.vector(tensor)

    def spectral_norms(self, tensor: Tensor) -> Tensor:
        """The exact largest singular value of each matrix; the norm of each vector; a scale's largest ``|gain|``.

        Under autocast too.
        """
        with without_autocast(tensor):
            if self.kind == "matrix":
                return spectral_norm(self.matrices(tensor))
            order, values = (math.inf, self.gains(tensor)) if self.kind == "scale" else (2, self.vectors(tensor))
            norms: Tensor = torch.linalg.vector_norm(values.to(working_dtype(tensor)), ord=order, dim=-1)
            return norms

    @property
    def _is_plain(self) -> bool:
        """Whether the tensor as it stands is one matrix."""
        return len(self.shape) == 2 and self.layout[0] == 1 and not self.transposed

    def _write_back(self, tensor: Tensor, split: Tensor) -> None:
        """Where the layout joins dimensions, whose strides may not allow it, what was split may be a copy."""
        groups, first, *rest = self.layout
        joins = [n for n in (groups * first, *rest) if n > 1] != [n for n in self.shape if n > 1]
        if joins and not self.side_by_side:
            tensor.copy_(split.reshape(tensor.shape))

    def _leading(self, tensor: Tensor) -> torch.Size:
        return tensor.shape[: tensor.ndim - len(self.shape)]

    def _split(self, tensor: Tensor) -> tuple[Tensor, int]:
        """It as (..., *layout), a view where its strides allow, and which of its dimensions follows the groups."""
        leading = self._leading(tensor)
        if self.side_by_side:
            return tensor.unflatten(-1, (self.layout[0], -1)).movedim(-2, -3), len(leading) + 1
        return tensor.reshape(*leading, *self.layout), len(leading) + 1
