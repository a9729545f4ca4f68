"""Diagnostics of the gradients on a fixed probe batch.

Each takes a quantity by layer, the whole network's under ``""``, and returns its values in the same form.
"""

from torch import Tensor

from supple.diagnostics import spectra
from supple.diagnostics.facts import ByLayer, diagnostic, norms_of


@diagnostic(title="norm of the gradient on the probe", usual=True)
def gradient_norm(gradients: ByLayer) -> dict[str, Tensor]:
    r"""The norm :math:`\lVert \nabla_\theta J \rVert` of the gradient of the loss on the probe.

    Args:
        gradients: by trainable parameter, as vectors ``(members…, n)``.
    """
    return norms_of(gradients)


@diagnostic(title="effective rank of the examples' gradients", higher_is_better=True, usual=True)
def gradient_effective_rank(gradient_singular_values: ByLayer) -> dict[str, Tensor]:
    r"""The effective rank of the matrix G whose columns are the gradients of single examples: a measure of diversity.

    .. math:: \exp\Bigl(-\sum_i \bar\sigma_i \log \bar\sigma_i\Bigr), \qquad
              \bar\sigma_i = \sigma_i(G) / \sum_j \sigma_j(G)

    It is from 1 (all gradients are parallel) to the number of examples; 0 if all gradients are zero. A layer's value is
    for its weight, the network's for all trainable parameters. The spectral regularization paper (§3.2) prints the
    formula without the minus sign and without exp.

    Args:
        gradient_singular_values: ``(members…, n)``, descending.
    """
    return {name: spectra.effective_rank(values) for name, values in gradient_singular_values.items()}


@diagnostic(title="condition number of the examples' gradients", higher_is_better=False, scale="symlog")
def gradient_condition_number(gradient_singular_values: ByLayer) -> dict[str, Tensor]:
    r"""The condition number :math:`\sigma_1(G) / \sigma_{\min}(G)` of the matrix of the gradients of single examples.

    G has as many singular values as examples, or as parameters if these are fewer; σ_min is the smallest of them.
    Infinite if G is singular up to rounding (beyond about 1e7).

    Args:
        gradient_singular_values: ``(members…, n)``, descending.
    """
    return {name: spectra.condition_number(values) for name, values in gradient_singular_values.items()}
