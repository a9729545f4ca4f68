"""Quantities from the singular values of a matrix. All functions accept leading dimensions."""

import torch
from torch import Tensor

from supple.kernels.power_iteration import gram_eigenvalues, smaller_gram


def singular_values(matrix: Tensor) -> Tensor:
    """All singular values of each ``(..., m, n)``, descending, ``(..., min(m, n))`` in float64.

    Computed from the smaller Gram matrix in float64: many times faster than a full SVD and, for a float32 matrix, as
    exact. Values below about 1e-7 of the largest are returned as zero. NaN for a matrix that is not finite.

    >>> singular_values(torch.tensor([[0.0, 3.0], [-2.0, 0.0]])).tolist()
    [3.0, 2.0]
    """
    return gram_singular_values(smaller_gram(matrix.double()))


def gram_singular_values(gram: Tensor) -> Tensor:
    """The singular values of G, descending, from ``Gᵀ G`` ``(..., n, n)``; those below rounding are zero."""
    squares = gram_eigenvalues(gram).flip(-1)
    rounding = gram.shape[-1] * torch.finfo(gram.dtype).eps * squares[..., :1]
    return squares.where(squares.isnan() | (squares > rounding), 0).sqrt()


def condition_number(values: Tensor) -> Tensor:
    r"""The condition number :math:`\sigma_1 / \sigma_{\min}` from singular values ``(..., n)``, descending.

    Infinite for a singular matrix, also for a zero matrix.
    """
    return (values[..., 0] / values[..., -1]).where((values[..., -1] > 0) | values[..., 0].isnan(), torch.inf)


def stable_rank(values: Tensor) -> Tensor:
    r"""The stable rank :math:`\lVert W \rVert_F^2 / \lVert W \rVert_2^2` from singular values ``(..., n)``, descending.

    Between 1 and the rank; 0 for a zero matrix.
    """
    shares = values / values[..., :1].where(values[..., :1] != 0, 1)  # divided first: no square underflows
    return shares.square().sum(-1)


def effective_rank(values: Tensor) -> Tensor:
    """The exponential of the entropy of singular values ``(..., n)`` over their sum.

    Between 1 and the rank; 0 for a zero matrix.
    """
    total = values.sum(-1, keepdim=True)
    entropy: Tensor = torch.special.entr(values / total.where(total != 0, 1)).sum(-1)
    total = total.squeeze(-1)
    return entropy.exp().where(total > 0, total)


def rank_of_share(values: Tensor, share: float = 0.99) -> Tensor:
    """How many of the singular values ``(..., n)``, descending, reach ``share`` of their sum; 0 for a zero matrix."""
    reached = values.cumsum(-1)
    total = reached[..., -1]
    short = reached < share * (1 - 1e-9) * total.unsqueeze(-1)  # robust to rounding if the share is reached exactly
    return (short.sum(-1) + 1).where(total > 0, total)
