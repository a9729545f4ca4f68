"""The networks that are trained."""

from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import nn

from supple.errors import imported, known
from supple.lab.datasets import Dataset
from supple.nn import CReLU
from supple.nn import spectral_normalization as normalized


def mlp(
    data: Dataset,
    *,
    width: int = 256,
    depth: int = 4,
    layer_norm: bool = False,
    activation: Literal["relu", "crelu"] = "relu",
    spectral_normalization: bool = False,
) -> nn.Sequential:
    """A multi-layer perceptron: ``depth`` hidden layers of ``width`` units (the paper's, App. B).

    Args:
        data: gives the numbers of inputs and classes.
        width: units a hidden layer. With CReLU, whose units pass on two values each, it is cut to where the number of
            parameters comes nearest to that of the ReLU network.
        depth: hidden layers.
        layer_norm: LayerNorm after the linear map and before the non-linearity.
        activation: the non-linearity.
        spectral_normalization: divide each weight by its largest singular value in the forward pass (Miyato et al.,
            2018).

    Weights start from torch's default.
    """
    sizes = data.train.images[0].numel(), data.classes
    if activation == "crelu":
        plain = _parameters(*sizes, width, depth, 1, layer_norm)
        width = min(range(1, width + 1), key=lambda cut: abs(_parameters(*sizes, cut, depth, 2, layer_norm) - plain))
    passed_on = {"relu": width, "crelu": 2 * width}[activation]
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs in [sizes[0]] + [passed_on] * (depth - 1):
        layers += [nn.Linear(inputs, width), *([nn.LayerNorm(width)] if layer_norm else [])]
        layers += [CReLU() if activation == "crelu" else nn.ReLU()]
    layers += [nn.Linear(passed_on, data.classes)]
    if spectral_normalization:
        layers = [normalized(layer) if isinstance(layer, nn.Linear) else layer for layer in layers]
    return nn.Sequential(*layers)


def _parameters(inputs: int, classes: int, width: int, depth: int, passed_on: int, layer_norm: bool) -> int:
    """The size of a network whose units each pass on so many values."""
    features = [inputs] + [width * passed_on] * depth
    return sum((before + 1 + 2 * layer_norm) * width for before in features[:-1]) + (features[-1] + 1) * classes


MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp,
    "mlp-layer-norm": partial(mlp, layer_norm=True),
    "mlp-2x100": partial(mlp, width=100, depth=2),
    "mlp-3x2000": partial(mlp, width=2000, depth=3),
}


def load(name: str) -> Callable[..., nn.Module]:
    """What a name stands for: an entry of ``MODELS``, or ``package.module:function``, called with the data."""
    return imported(name) if ":" in name else MODELS[known(name, MODELS, "model or package.module:function")]
