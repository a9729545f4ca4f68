"""Diagnostics of the gradients on a fixed probe batch.

Each takes what it looks at by layer, the whole network's under ``""``, and returns its values in the same way.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from supple.diagnostics import spectra

ByLayer = Mapping[str, Tensor]


def gradient_norm(gradients: ByLayer) -> dict[str, Tensor]:
    r"""The norm :math:`\lVert \nabla_\theta J \rVert` of the gradient of the loss on the probe.

    Args:
        gradients: by trainable parameter, as vectors ``(members…, n)``.
    """
    norms = {name: torch.linalg.vector_norm(g, dim=-1, dtype=torch.float64) for name, g in gradients.items()}
    return {"": torch.linalg.vector_norm(torch.stack(list(norms.values()), -1), dim=-1), **norms}


def gradient_effective_rank(gradient_singular_values: ByLayer) -> dict[str, Tensor]:
    r"""The effective rank of the matrix G whose columns are the gradients of single examples: their diversity.

    .. math:: \exp\Bigl(-\sum_i \bar\sigma_i \log \bar\sigma_i\Bigr), \qquad
              \bar\sigma_i = \sigma_i(G) / \sum_j \sigma_j(G)

    From 1, where all examples pull in one direction, to their number; 0 where no example has a gradient. For a layer
    those of its weight, for the network those of all trainable parameters. The spectral regularization paper (§3.2)
    prints it without the minus sign and without exp.

    Args:
        gradient_singular_values: ``(members…, n)``, descending.
    """
    return {name: spectra.effective_rank(values) for name, values in gradient_singular_values.items()}


def gradient_condition_number(gradient_singular_values: ByLayer) -> dict[str, Tensor]:
    r"""The condition number :math:`\sigma_1(G) / \sigma_{\min}(G)` of the matrix of the gradients of single examples.

    The smallest is that of as many singular values as G has: the number of examples, or of parameters where that is
    smaller. Infinite where G is singular to rounding (beyond about 1e7).

    Args:
        gradient_singular_values: ``(members…, n)``, descending.
    """
    return {name: spectra.condition_number(values) for name, values in gradient_singular_values.items()}
