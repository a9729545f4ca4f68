"""The largest singular value and its vectors, followed from step to step by power iteration."""

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

RESTART = 1e-6
"""How much of a fixed random direction each iteration mixes in with v.

Rounding does this by itself in a dense matrix; in a diagonal or sparse one a direction that has died out would stay
dead, and the estimate would cling to a smaller singular value when another overtakes it. It moves σ by some 1e-12.
"""

TINY = 1e-18
"""Norms below this fade to zero: their squares would be lost in float32."""


class SingularTriple(NamedTuple):
    """The largest singular value with its vectors: ``weight @ v = sigma * u`` once converged."""

    sigma: Tensor  # (...)
    u: Tensor  # (..., m)
    v: Tensor  # (..., n)


def power_iteration(weight: Tensor, v: Tensor, restart: Tensor, iterations: int = 1) -> SingularTriple:
    r"""Advance the estimate of each matrix's largest singular value by a few power iterations.

    One iteration reads the weight twice: :math:`u \gets Wv / \lVert Wv \rVert`, then :math:`w = W^\top u`,
    :math:`\sigma = \lVert w \rVert` and :math:`v \gets w / \sigma`.
    With the new vectors :math:`u^\top W v = \sigma` holds exactly, also before convergence, so that the value and
    the rank-one gradient :math:`u v^\top` belong together.

    Args:
        weight: matrices of shape ``(..., m, n)``. Half precision is computed in float32.
        v: right singular vectors from the last call, ``(..., n)``; a zero vector is allowed.
        restart: a fixed random direction of length one, ``(..., n)``, of which a trace is mixed in.
        iterations: at least 1. One a step is enough when the vectors are kept, since a weight moves little in a step
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
    """u of length one, and w = Wᵀu, whose length is σ: the last two reads of the weight in so many iterations.

    The first of them starts with ``v`` as :func:`prepare_` left it.
    """
    weight = weight.to(working_dtype(weight))
    for _ in range(iterations - 1):
        _, w = half_iteration(weight, v, restart)
        v = prepare_(normalized(w), restart)
    u = normalized(product(weight, v.to(weight.dtype)))  # a network may change its dtype
    return u, product(weight.mT, u)


def product(weight: Tensor, vector: Tensor) -> Tensor:
    """``(..., m, n)`` by ``(..., n)``; a lone matrix, the usual case, without the detour over a batched product."""
    return torch.mv(weight, vector) if weight.ndim == 2 else (weight @ vector.unsqueeze(-1)).squeeze(-1)


def prepare_(v: Tensor, restart: Tensor) -> Tensor:
    """Make v, in place, what an iteration starts with: a trace of ``restart``, and nothing that is not finite.

    A weight that was not finite for a step makes v so; it starts anew. This is done when v is kept and not when it is
    read, since a compiler would do it again for each row of the product that reads it.
    """
    return v.nan_to_num_(0.0).add_(restart, alpha=RESTART)


def normalized(vector: Tensor) -> Tensor:
    """Each ``(..., n)`` at length one; a zero vector stays zero."""
    return vector * (1 / norm_of(vector).clamp_min(TINY))


def norm_of(vector: Tensor) -> Tensor:
    """The length of each ``(..., n)``, as ``(..., 1)``."""
    norm: Tensor = torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
    return norm


def spectral_norm(weight: Tensor) -> Tensor:
    """The largest singular value of each ``(..., m, n)`` matrix, ``(...)``, to rounding.

    From the largest eigenvalue of the smaller Gram matrix, which for the largest singular value is as accurate as a
    full SVD and many times cheaper. NaN for a matrix that is not finite. Meant for looking, not for training steps.

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
    """float32, or the tensor's own type where that is wider."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Where products have the type of their factors, on this tensor's device: autocast would round them."""
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
