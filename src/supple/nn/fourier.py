"""Deep Fourier features: the sine and the cosine of each unit."""

import torch
from torch import Tensor, nn


class FourierFeatures(nn.Module):
    """``concat(sin(x), cos(x))`` along one dimension, which doubles its size.

    Wherever one of the two is flat, the other is steepest: their squared slopes add up to 1, so no unit can die or
    saturate. In the source every hidden layer has them, with half the units of the ReLU network, so that layers pass on
    as many features as there.

    Args:
        dim: the dimension of the features: -1 after linear layers, 1 after convolutions.

    Source: Lewandowski, Schuurmans & Machado, *Plastic Learning with Deep Fourier Features*, 2025 (arXiv 2410.20634).

    >>> FourierFeatures()(torch.zeros(2))
    tensor([0., 0., 1., 1.])
    """

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """``(..., n, ...)`` to ``(..., 2n, ...)``."""
        return torch.cat([x.sin(), x.cos()], self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"
