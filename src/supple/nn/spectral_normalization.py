"""Spectral normalization (Miyato et al., 2018): weights divided by their largest singular value in the forward pass."""

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import register_parametrization

from supple.kernels.power_iteration import TINY, power_iteration, without_autocast, working_dtype


class SpectralNormalization(nn.Module):
    """A parametrization W / σ₁(W) of a weight ``(out, ...)``, taken as the matrix out × rest.

    Args:
        weight: the initial weight.
        dim: the dimension of the outputs, 1 in transposed convolutions.

    σ₁ comes from one power iteration per forward pass in training mode; its vectors are buffers, and its derivative
    takes them as constants. This is like ``torch.nn.utils.parametrizations.spectral_norm``, but also runs under
    ``torch.func.vmap``. Half precision is computed in float32.

    Source: Miyato et al., *Spectral Normalization for Generative Adversarial Networks*, 2018.

    >>> layer = spectral_normalization(nn.Linear(3, 2))
    >>> for _ in range(50):
    ...     weight = layer.weight
    >>> torch.linalg.matrix_norm(weight, ord=2).round(decimals=3).item()
    1.0
    """

    v: Tensor
    restart: Tensor

    def __init__(self, weight: Tensor, dim: int = 0) -> None:
        super().__init__()
        self.dim = dim
        matrix = weight.detach().movedim(dim, 0).flatten(1)
        self.register_buffer("v", torch.nn.functional.normalize(torch.randn_like(matrix[0]), dim=0))
        self.register_buffer("restart", torch.nn.functional.normalize(torch.randn_like(matrix[0]), dim=0))
        self.v.copy_(power_iteration(matrix, self.v, self.restart, iterations=15).v)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight divided by its largest singular value."""
        dtype = working_dtype(weight)
        matrix = weight.movedim(self.dim, 0).flatten(1).to(dtype)
        with without_autocast(weight):
            _, u, v = power_iteration(matrix.detach(), self.v, self.restart)
            sigma = torch.dot(u, torch.mv(matrix, v))
        if self.training:
            self.v.copy_(v.detach())
        return (weight.to(dtype) / sigma.clamp_min(TINY)).to(weight.dtype)


def spectral_normalization(layer: nn.Module) -> nn.Module:
    """Normalize the ``weight`` of a layer from now on; returns the layer.

    Raises:
        ValueError: for a layer whose weight is not a matrix.
    """
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or is_lazy(weight) or weight.ndim < 2:
        raise ValueError(
            f"expected a layer with a weight of two or more dimensions, got {type(layer).__name__}: name linear "
            "layers and convolutions one by one, lazy ones after their first batch"
        )
    dim = int(isinstance(layer, _ConvTransposeNd))
    register_parametrization(layer, "weight", SpectralNormalization(weight, dim))
    return layer
