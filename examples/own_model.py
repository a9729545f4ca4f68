"""A network of your own in one file: called with the data set, it returns a module from images to logits.

    supple run random-label-digits --model own_model:residual --method spectral

The folder that holds this file must be on PYTHONPATH.
"""

from torch import Tensor, nn

from supple.lab.datasets import Dataset


class Block(nn.Module):
    """x + f(x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.change = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.change(x)


def residual(data: Dataset, width: int = 64) -> nn.Module:
    """Two residual blocks between an embedding and a head."""
    inputs = data.train.images[0].numel()
    return nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, width), Block(width), Block(width), nn.Linear(width, data.classes)
    )
