"""The networks of the laboratory."""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from supple.errors import imported, known
from supple.lab.datasets import Dataset
from supple.lab.trimmed import TrimmedConv2d
from supple.nn import CReLU, FourierFeatures
from supple.nn import spectral_normalization as normalized

Activation = Literal["relu", "crelu", "fourier"]
Network = TypeVar("Network", bound=nn.Module)


class KaimingLinear(nn.Linear):
    """A linear layer for ReLU that starts as in Dohare et al. (2024): He et al.'s uniform weights, biases of zero."""

    def reset_parameters(self) -> None:
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")
        nn.init.zeros_(self.bias)


def mlp(
    data: Dataset,
    *,
    width: int = 256,
    depth: int = 4,
    layer_norm: bool = False,
    activation: Activation = "relu",
    spectral_normalization: bool = False,
    linear: type[nn.Linear] = nn.Linear,
    narrowing: int = 1,
    slope: float = 0.0,
) -> nn.Sequential:
    """A multi-layer perceptron: ``depth`` hidden layers of ``width`` units (the paper's, App. B).

    Args:
        data: determines the number of inputs and classes.
        width: units per hidden layer. A CReLU unit has two outputs, so with CReLU the width is reduced until the number
            of parameters is closest to that of the ReLU network. With Fourier features it is halved, as in their
            source: layers then pass on ``width`` features, with about half the parameters.
        depth: hidden layers.
        layer_norm: LayerNorm after the linear map and before the non-linearity.
        activation: the non-linearity.
        spectral_normalization: divide each weight by its largest singular value in the forward pass (Miyato et al.,
            2018).
        linear: the layers, which initialize themselves: torch's default, or :class:`KaimingLinear`.
        narrowing: the number of units of a hidden layer divided by that of the next one.
        slope: the slope below zero; above 0 the activation is a leaky ReLU.
    """

    if slope and activation != "relu":
        raise ValueError(
            f"expected ReLU in a network with leaky ReLU, got activation={activation!r}: choose mlp or mlp-2x100"
        )

    def build(width: int, activation: Activation) -> nn.Sequential:
        features = data.train.images[0].numel()
        layers: list[nn.Module] = [nn.Flatten()]
        for layer in range(depth):
            units = max(1, width // narrowing**layer)
            layers += [linear(features, units), *([nn.LayerNorm(units)] if layer_norm else [])]
            layers += [nn.LeakyReLU(slope) if slope else _activation(activation)]
            features = _outputs(activation) * units
        return nn.Sequential(*layers, linear(features, data.classes))

    return _finished(_sized(build, width, activation), spectral_normalization)


def conv(
    data: Dataset,
    *,
    layer_norm: bool = False,
    activation: Activation = "relu",
    spectral_normalization: bool = False,
) -> nn.Sequential:
    """Two convolutions and two hidden layers: the network of Kumar et al. (2023) for Continual ImageNet.

    Each convolution has 16 channels with 5x5 kernels and is followed by 2x2 max pooling; each hidden layer has 100
    units. Images of 32x32 give 400 features between convolutions and hidden layers.

    Args:
        data: determines the size of the images and the number of classes.
        layer_norm: before each non-linearity, normalize all units of the layer together (Ba et al., 2016). After a
            convolution that is GroupNorm with one group, which has one gain per channel.
        activation: the non-linearity. With CReLU and Fourier features, channels and units are reduced in proportion, as
            in :func:`mlp`.
        spectral_normalization: as in :func:`mlp`.

    Weights start from torch's default.
    """
    channels, *sides = data.train.images.shape[1:]
    if min(sides) < 16:
        raise ValueError(f"expected images of 16x16 or more for conv, got {sides[0]}x{sides[1]}: choose another model")
    positions = math.prod(((side - 4) // 2 - 4) // 2 for side in sides)

    def build(units: int, activation: Activation) -> nn.Sequential:
        passed_on, maps = _outputs(activation), max(1, round(0.16 * units))
        layers: list[nn.Module] = []
        for before in (channels, passed_on * maps):
            layers += [nn.Conv2d(before, maps, 5), *([nn.GroupNorm(1, maps)] if layer_norm else [])]
            pooled = [_activation(activation, dim=1), nn.MaxPool2d(2)]
            # ReLU is monotone, so pooling first gives the same and leaves it a quarter of the numbers.
            layers += pooled[::-1] if activation == "relu" else pooled
        layers += [nn.Flatten()]
        for before in (passed_on * maps * positions, passed_on * units):
            layers += [nn.Linear(before, units), *([nn.LayerNorm(units)] if layer_norm else [])]
            layers += [_activation(activation)]
        return nn.Sequential(*layers, nn.Linear(passed_on * units, data.classes))

    return _finished(_sized(build, 100, activation), spectral_normalization)


def resnet18(
    data: Dataset,
    *,
    width: int = 64,
    layer_norm: bool = False,
    activation: Activation = "relu",
    spectral_normalization: bool = False,
) -> nn.Module:
    """ResNet-18 with batch norm (He et al., 2016), as implemented in ``transformers``.

    The paper calls its network "off-the-shelf" (App. B), for 32x32 and 64x64 images: so the stem is ImageNet's, a 7x7
    convolution and max pooling, which divide height and width by four. The smaller stem that others use on CIFAR would
    cost fifteen times as much.

    Args:
        data: determines the size of the images and the number of classes.
        width: channels of the first of the four stages; each further stage has twice as many.
        layer_norm: an error if true: this network has its own normalization.
        activation: only ``relu``.
        spectral_normalization: as in :func:`mlp`.

    Weights are initialized as in He et al. (2015).
    """
    from transformers.models.resnet import ResNetConfig, ResNetForImageClassification

    _refuse("resnet18", layer_norm, activation)
    config = ResNetConfig(
        num_channels=data.train.images.shape[1],
        embedding_size=width,
        hidden_sizes=[width, 2 * width, 4 * width, 8 * width],
        depths=[2, 2, 2, 2],
        layer_type="basic",
    )
    config.num_labels = data.classes
    whole = ResNetForImageClassification(config)
    for layer in whole.modules():
        if type(layer) is nn.Conv2d:
            layer.__class__ = TrimmedConv2d  # the same layer with the same parameters, but less work on small images
    stem, body = whole.resnet.embedder, whole.resnet.encoder
    layers = stem.embedder, stem.pooler, *body.stages, whole.resnet.pooler, whole.classifier
    return _finished(_off_the_shelf(whole, layers), spectral_normalization)


def vit_tiny(
    data: Dataset, *, layer_norm: bool = False, activation: Activation = "relu", spectral_normalization: bool = False
) -> nn.Module:
    """ViT-Tiny (Dosovitskiy et al., 2021), as implemented in ``transformers``: width 192, 12 layers, 3 heads.

    The paper does not state the patch size. ViT's 16 would give only four patches on a 32x32 image. Here a patch is
    about an eighth of the image wide: 4 for 32x32 and 28x28, 8 for 64x64, which gives 64 or 49 patches. No dropout.

    Args:
        data: determines the size of the images and the number of classes.
        layer_norm: an error if true: this network has its own normalization.
        activation: only ``relu``, which leaves the network's own GELU.
        spectral_normalization: as in :func:`mlp`.

    Weights start from a normal distribution with deviation 0.02, biases from 0.
    """
    from transformers.models.vit import ViTConfig, ViTForImageClassification

    _refuse("vit-tiny", layer_norm, activation)
    channels, height, width = data.train.images.shape[1:]
    divisors = [patch for patch in range(1, height + 1) if height % patch == width % patch == 0]
    config = ViTConfig(
        hidden_size=192,
        num_hidden_layers=12,
        num_attention_heads=3,
        intermediate_size=768,
        image_size=(height, width),
        patch_size=min(divisors, key=lambda patch: abs(patch - height / 8)),
        num_channels=channels,
    )
    config.num_labels = data.classes
    whole = ViTForImageClassification(config)
    # Fused attention saves 3 % of a step on a CPU, but it can't be vectorized over the members of a population.
    whole.set_attn_implementation("eager")
    layers = whole.vit.embeddings, *whole.vit.layers, whole.vit.layernorm, FirstToken(), whole.classifier
    return _finished(_off_the_shelf(whole, layers), spectral_normalization)


class FirstToken(nn.Module):
    """The class token's features: ``(batch, tokens, features)`` to ``(batch, features)``."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0]


MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp,
    "mlp-layer-norm": partial(mlp, layer_norm=True),
    "mlp-2x100": partial(mlp, width=100, depth=2),
    "mlp-2x100-leaky-0.8": partial(mlp, width=100, depth=2, slope=0.8),
    "mlp-300-150": partial(mlp, width=300, depth=2, narrowing=2),
    "mlp-300-150-leaky": partial(mlp, width=300, depth=2, narrowing=2, slope=0.01),
    "mlp-3x2000": partial(mlp, width=2000, depth=3),
    "mlp-3x2000-kaiming": partial(mlp, width=2000, depth=3, linear=KaimingLinear),
    "conv": conv,
    "resnet18": resnet18,
    "resnet18-narrow": partial(resnet18, width=16),
    "vit-tiny": vit_tiny,
}


def find(name: str) -> Callable[..., nn.Module]:
    """The function that builds a network: an entry of ``MODELS``, or your own ``package.module:function``.

    Its arguments are the :class:`~supple.lab.datasets.Dataset` and, as keywords, the method's network options, if any.
    It returns a module from images ``(batch, channels, height, width)`` to logits ``(batch, classes)``.
    """
    return imported(name) if ":" in name else MODELS[known(name, MODELS, "model or package.module:function")]


def check_network(network: object, name: str) -> nn.Module:
    """Check that a model's function returned a network that can be trained; return the network.

    Raises:
        ValueError: otherwise; the message names the model.
    """
    if not isinstance(network, nn.Module):
        raise ValueError(f"expected a network from {name}, got {type(network).__name__}: return an nn.Module")
    frozen = [key for key, parameter in network.named_parameters() if not parameter.requires_grad]
    if frozen or not any(True for _ in network.parameters()):
        got = f"{frozen[0]!r}, which is frozen" if frozen else "none"
        raise ValueError(f"expected parameters to train in {name}, got {got}: make every parameter require gradients")
    return network


def check_outputs(outputs: object, images: int, classes: int, name: str) -> None:
    """Check that a network returns a logit for each class.

    Raises:
        ValueError: otherwise; the message names the model.
    """
    if isinstance(outputs, Tensor) and outputs.ndim == 2 and len(outputs) == images and outputs.shape[1] >= classes:
        return
    got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
    raise ValueError(f"expected logits ({images}, {classes}) from {name}, got {got}: give one for each class")


def _activation(name: Activation, dim: int = -1) -> nn.Module:
    if name == "relu":
        return nn.ReLU()
    return CReLU(dim) if name == "crelu" else FourierFeatures(dim)


def _outputs(activation: Activation) -> int:
    """The outputs of a unit."""
    return 1 if activation == "relu" else 2


def _sized(build: Callable[[int, Activation], nn.Sequential], width: int, activation: Activation) -> nn.Sequential:
    """A network of this width with ReLU; with CReLU, of the width that gives about as many parameters.

    With Fourier features, of half the width.
    """
    if activation != "crelu":
        return build(max(1, width // _outputs(activation)), activation)

    def size(width: int, activation: Activation = "crelu") -> int:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in build(width, activation).parameters())

    plain = size(width, "relu")
    below = max(1, bisect_left(range(1, width + 1), plain, key=size))
    return build(min((below, min(below + 1, width)), key=lambda cut: abs(size(cut) - plain)), activation)


def _finished(network: Network, spectral_normalization: bool) -> Network:
    if spectral_normalization:
        for layer in [*network.modules()]:
            if isinstance(layer, nn.Linear | nn.Conv2d):
                normalized(layer)
    return network


def _off_the_shelf(whole: Any, layers: Iterable[nn.Module]) -> nn.Sequential:
    """The layers of a network of ``transformers`` as a plain module from images to logits."""
    network = nn.Sequential(*layers)
    module: Any
    for module in network.modules():
        if [*module.parameters(recurse=False)]:
            # Methods reinitialize parameters with their module's reset_parameters(): give it the original initializer.
            module.reset_parameters = partial(whole._init_weights, module)
    return network


def _refuse(name: str, layer_norm: bool, activation: str) -> None:
    for given, option in ((layer_norm, "layer_norm"), (activation != "relu", f"activation={activation!r}")):
        if given:
            raise ValueError(f"expected a model with {option}, got {name}, whose layers are fixed: choose mlp or conv")
