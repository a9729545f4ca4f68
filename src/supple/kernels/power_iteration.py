"""The largest singular value and its vectors, by a power iteration that continues from step to step."""

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

RESTART = 1e-6
"""How much of a fixed random direction each iteration adds to v.

In a dense matrix rounding errors have this effect. In a diagonal or sparse one a direction that has become zero in v
would stay zero, and the estimate would miss that another singular value is now the largest. σ changes by about 1e-12.
"""

TINY = 1e-18
"""A vector with a smaller norm is not normalized to one, but goes to zero: its squares would underflow in float32."""


class SingularTriple(NamedTuple):
    """The largest singular value with its vectors: ``weight @ v = sigma * u`` once converged."""

    sigma: Tensor  # (...)
    u: Tensor  # (..., m)
    v: Tensor  # (..., n)


def power_iteration(weight: Tensor, v: Tensor, restart: Tensor, iterations: int = 1) -> SingularTriple:
    r"""Advance the estimate of each matrix's largest singular value by a few power iterations.

    One iteration reads the weight twice: :math:`u \gets Wv / \lVert Wv \rVert`, then :math:`w = W^\top u`,
    :math:`\sigma = \lVert w \rVert` and :math:`v \gets w / \sigma`.
    The new vectors satisfy :math:`u^\top W v = \sigma` exactly, even before convergence, so :math:`u v^\top` is the
    exact gradient of this estimate for fixed u and v.

    Args:
        weight: matrices of shape ``(..., m, n)``. Half precision is computed in float32.
        v: right singular vectors from the last call, ``(..., n)``; a zero vector is allowed.
        restart: a fixed random direction of norm one, ``(..., n)``; see :data:`RESTART`.
        iterations: at least 1. One per step is enough if the vectors are kept, since a weight changes little in a step
            (Yoshida & Miyato, 2017).

    Returns:
        The triple; for a zero matrix ``sigma``, ``u`` and ``v`` are zero, never NaN.

    >>> diagonal = torch.diag(torch.tensor([3.0, 1.0]))
    >>> power_iteration(diagonal, torch.ones(2), torch.ones(2), iterations=20).sigma
    tensor(3.)
    """
    u, w = half_iteration(weight, prepare_(v.clone(), restart), restart, iterations)
    sigma = norm_of(w)
    return SingularTriple(sigma.squeeze(-1), u, w * (1 / sigma.clamp_min(TINY)))


def half_iteration(weight: Tensor, v: Tensor, restart: Tensor, iterations: int = 1) -> tuple[Tensor, Tensor]:
    """u of norm one, and w = Wᵀu = σv, after ``iterations`` power iterations. The last one leaves out v = w / σ.

    ``v`` must be as :func:`prepare_` returns it.
    """
    weight = weight.to(working_dtype(weight))
    for _ in range(iterations - 1):
        _, w = half_iteration(weight, v, restart)
        v = prepare_(normalized(w), restart)
    u = normalized(product(weight, v.to(weight.dtype)))  # the network's dtype may have changed
    return u, product(weight.mT, u)


def product(weight: Tensor, vector: Tensor) -> Tensor:
    """``(..., m, n)`` times ``(..., n)``; a single matrix, the usual case, avoids the slower batched product."""
    return torch.mv(weight, vector) if weight.ndim == 2 else (weight @ vector.unsqueeze(-1)).squeeze(-1)


def prepare_(v: Tensor, restart: Tensor) -> Tensor:
    """Prepare v in place for the next iteration: replace values that are not finite, and add a little of ``restart``.

    If a weight was not finite for a step, v is not finite either, and must restart. This is done when v is stored, not
    when it is read, since a compiler would repeat it for each row of the product that reads it.
    """
    return v.nan_to_num_(0.0).add_(restart, alpha=RESTART)


def normalized(vector: Tensor) -> Tensor:
    """Each ``(..., n)`` divided by its norm; a zero vector stays zero."""
    return vector * (1 / norm_of(vector).clamp_min(TINY))


def norm_of(vector: Tensor) -> Tensor:
    """The norm of each ``(..., n)``, as ``(..., 1)``."""
    norm: Tensor = torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
    return norm


def spectral_norm(weight: Tensor) -> Tensor:
    """The largest singular value of each ``(..., m, n)`` matrix, ``(...)``, up to rounding.

    It is computed from the largest eigenvalue of the smaller Gram matrix: as accurate as a full SVD, and many times
    cheaper. NaN for a matrix that is not finite. It is for diagnostics, not for training steps.

    >>> spectral_norm(torch.diag(torch.tensor([3.0, 1.0])))
    tensor(3.)
    """
    weight = weight.to(working_dtype(weight))
    return gram_eigenvalues(smaller_gram(weight))[..., -1].clamp_min(0).sqrt()


def smaller_gram(matrix: Tensor) -> Tensor:
    """``W Wᵀ`` or ``Wᵀ W`` of each ``(..., m, n)``, whichever is smaller."""
    return matrix @ matrix.mT if matrix.shape[-2] <= matrix.shape[-1] else matrix.mT @ matrix


def gram_eigenvalues(gram: Tensor) -> Tensor:
    """The eigenvalues of each symmetric ``(..., n, n)``, ascending; NaN for one that is not finite."""
    finite = gram.isfinite().all(-1).all(-1, keepdim=True)
    eigenvalues: Tensor = torch.linalg.eigvalsh(gram.where(finite.unsqueeze(-1), 0))
    return eigenvalues.where(finite, torch.nan)


def working_dtype(tensor: Tensor) -> torch.dtype:
    """float32, or the tensor's own type if it is wider."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """A context without autocast on this tensor's device: autocast would round the products to half precision."""
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
