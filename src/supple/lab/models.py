"""The networks that are trained."""

from collections.abc import Callable
from itertools import pairwise

from torch import nn

from supple.lab.datasets import Dataset


def mlp(data: Dataset, *, width: int = 256, depth: int = 4, layer_norm: bool = False) -> nn.Sequential:
    """A multi-layer perceptron: ``depth`` hidden ReLU layers of ``width`` units (the paper's, App. B).

    LayerNorm, where asked for, stands after the linear map and before the non-linearity. Weights start from torch's
    default.
    """
    widths = [data.images[0].numel()] + [width] * depth
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), *([nn.LayerNorm(outputs)] if layer_norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, data.classes))


MODELS: dict[str, Callable[..., nn.Module]] = {"mlp": mlp}
