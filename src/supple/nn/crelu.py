"""Concatenated ReLU: the positive and the negative part of each unit."""

import torch
from torch import Tensor, nn


class CReLU(nn.Module):
    """``concat(relu(x), relu(-x))`` along one dimension, which doubles its size; no unit can die.

    Args:
        dim: the dimension of the features: -1 after linear layers, 1 after convolutions.

    Source: Shang et al., *Understanding and Improving Convolutional Neural Networks via Concatenated Rectified Linear
    Units*, 2016; for plasticity Abbas et al., *Loss of Plasticity in Continual Deep Reinforcement Learning*, 2023.

    >>> CReLU()(torch.tensor([1.0, -2.0]))
    tensor([1., 0., 0., 2.])
    """

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """``(..., n, ...)`` to ``(..., 2n, ...)``."""
        return torch.cat([x.relu(), (-x).relu()], self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"
