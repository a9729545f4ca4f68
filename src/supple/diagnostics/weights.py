"""Diagnostics of the weights.

Each takes a quantity by layer and returns its values by layer, with the whole network's under ``""``. A layer's value
is the mean over the matrices in its tensor (one, or q, k and v, or gates, or groups). The network's value is the mean
over all its matrices, also those that are frozen.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from supple.diagnostics import spectra
from supple.diagnostics.facts import ByLayer, diagnostic, means_of, norms_of


@diagnostic(title="largest singular value, mean over layers", usual=True)
def spectral_norm(singular_values: ByLayer) -> dict[str, Tensor]:
    r"""The largest singular value :math:`\sigma_1(W)`; for the network, the mean over its matrices.

    Args:
        singular_values: of each layer's matrices, ``(members…, matrices, n)``, descending; a convolution is the matrix
            (out, in · kernel), an embedding acts on one-hot vectors.
    """
    return _averaged(singular_values, lambda values: values[..., 0])


@diagnostic(title="smallest singular value, mean over layers", usual=True)
def smallest_singular_value(singular_values: ByLayer) -> dict[str, Tensor]:
    r"""The smallest singular value :math:`\sigma_{\min(m, n)}(W)` of an m × n matrix; the mean over matrices."""
    return _averaged(singular_values, lambda values: values[..., -1])


@diagnostic(title="condition number of the weights", higher_is_better=False, scale="symlog")
def condition_number(singular_values: ByLayer) -> dict[str, Tensor]:
    r"""The condition number :math:`\kappa(W) = \sigma_1(W) / \sigma_{\min(m, n)}(W)`; the mean over matrices.

    Infinite for a matrix that is singular up to rounding (beyond about 1e7), also for the zero matrix.
    """
    return _averaged(singular_values, spectra.condition_number)


@diagnostic(title="stable rank of the weights", higher_is_better=True, usual=True)
def stable_rank(singular_values: ByLayer) -> dict[str, Tensor]:
    r"""The stable rank :math:`\lVert W \rVert_F^2 / \sigma_1(W)^2`, 0 for a zero matrix; the mean over matrices."""
    return _averaged(singular_values, spectra.stable_rank)


@diagnostic(title="effective rank of the weights", higher_is_better=True, usual=True)
def effective_rank(singular_values: ByLayer) -> dict[str, Tensor]:
    r"""The effective rank, the exponential of the entropy of the singular values; the mean over matrices.

    .. math:: \exp\Bigl(-\sum_i \bar\sigma_i \log \bar\sigma_i\Bigr), \qquad \bar\sigma_i = \sigma_i / \sum_j \sigma_j

    0 for a zero matrix. The spectral regularization paper prints it without the minus sign and without exp (§3.2); this
    is the original, to which it refers (Roy & Vetterli, *The effective rank*, 2007).
    """
    return _averaged(singular_values, spectra.effective_rank)


@diagnostic(title="product of the largest singular values", scale="symlog")
def lipschitz_bound(singular_values: ByLayer) -> dict[str, Tensor]:
    r"""The product over layers of :math:`\sigma_1`; only for the whole network.

    It bounds the Lipschitz constant of a chain of linear layers and activations such as ReLU (the paper's appendix
    A.3). If a tensor holds several matrices, their largest σ₁ is used, which is exact for a grouped convolution. For
    other networks the product is not a bound: it ignores norms, residual additions and attention, multiplies parallel
    branches such as twin critics (monitor each alone), and a convolution's Lipschitz constant can exceed its matrix's
    σ₁ (out, in · kernel), at most by the factor √(kernel size).
    """
    return {"": torch.stack([values[..., 0].amax(-1) for values in singular_values.values()], -1).prod(-1)}


@diagnostic(title="norm of all parameters", usual=True)
def weight_norm(parameters: ByLayer) -> dict[str, Tensor]:
    r"""The Frobenius norm :math:`\lVert \theta \rVert` of each parameter, and of all parameters together.

    Args:
        parameters: each as a vector ``(members…, n)``; biases and gains are among them.
    """
    return norms_of(parameters)


@diagnostic(title="distance from initialization", usual=True)
def distance_from_initialization(parameters: ByLayer, initial: ByLayer) -> dict[str, Tensor]:
    r"""The distance :math:`\lVert \theta - \theta^{(0)} \rVert` of each parameter, and of all, from its initial value.

    Args:
        parameters: each as a vector ``(members…, n)``; biases and gains are among them.
        initial: the same before training.
    """
    for name, vector in parameters.items():
        if name not in initial or initial[name].shape != vector.shape:
            before = tuple(initial[name].shape) if name in initial else "absent"
            raise ValueError(
                f"expected the parameters of the initial network, got {name!r} of shape {tuple(vector.shape)}, first "
                f"{before}: build a new monitor after the network has changed"
            )
    return norms_of({name: vector - initial[name].to(vector.device) for name, vector in parameters.items()})


def _averaged(singular_values: ByLayer, of: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    return means_of({name: of(values) for name, values in singular_values.items()})
