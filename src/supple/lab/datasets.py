"""The images that are learned from, as uint8 tensors, split as the protocols split them.

They come from the folder that the environment variable ``SUPPLE_DATA`` names, which has a folder of parquet files for
each data set (``mnist``, or ``mnist_subset`` for a part of it), otherwise from the Hugging Face hub. Decoded tensors
are cached under ``SUPPLE_CACHE`` (default ``~/.cache/supple``).
"""

import os
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from supple.errors import known
from supple.lab.parquet import Decoded, Hub, channel_statistics, from_folder, from_hub


@dataclass(frozen=True)
class Examples:
    """Images with their labels."""

    images: Tensor
    """uint8 ``(n, channels, height, width)``."""
    labels: Tensor
    """int64 ``(n,)``, from 0 to ``classes - 1``."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """What is trained on, chosen by and tested on."""

    train: Examples
    validation: Examples | None
    """What choices are made by; None where the protocol has none."""
    test: Examples | None
    classes: int
    mean: tuple[float, ...]
    """Of each channel's values from 0 to 1; grey images are used as they are, with mean 0 and deviation 1."""
    std: tuple[float, ...]
    subset: bool = False
    """Whether this is less than what the protocol takes: results on it are no results of the protocol."""
    names: tuple[str, ...] = ()
    """Of the classes, where they have any."""

    def normalized(self, images: Tensor) -> Tensor:
        """uint8 ``(..., channels, height, width)`` as float32, (pixels / 255 - mean) / std, on the same device."""
        inputs = images.float() / 255
        for channel, mean, std in zip(inputs.unbind(-3), self.mean, self.std, strict=True):
            channel.sub_(mean).div_(std)
        return inputs


def digits() -> Dataset:
    """1,797 scans of handwritten digits, 8x8 grey, 10 classes, bundled with scikit-learn (UCI's optical test set)."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)  # 0 to 16
    images = torch.from_numpy(pixels * (255 / 16)).round().to(torch.uint8)
    examples = Examples(images.reshape(-1, 1, 8, 8), torch.from_numpy(labels).long())
    return Dataset(examples, None, None, 10, (0.0,), (1.0,), names=tuple("0123456789"))


def published(folder: str, hub: Hub, *, train: int, test: int, validation: int = 0) -> Dataset:
    """The first examples of a published data set (App. B).

    Args:
        folder: its name under ``SUPPLE_DATA``.
        hub: where it is otherwise.
        train: how many training examples.
        test: how many of the test examples.
        validation: how many of the test examples are not for testing but for choosing, before those. Where there are
            fewer than ``validation + test``, the same share.
    """
    data = _dataset(_local_or_hub(folder, hub))
    if data.test is None:
        raise ValueError(f"expected test examples of {folder}, found none: add test-*.parquet")
    held_out = min(len(data.test), validation + test)
    chosen_by = validation * held_out // (validation + test)
    return replace(
        data,
        train=_part(data.train, 0, train),
        validation=_part(data.test, 0, chosen_by) if validation else None,
        test=_part(data.test, chosen_by, held_out),
        subset=len(data.train) < train or held_out < validation + test,
    )


def tiny_imagenet() -> Dataset:
    """200 classes of ImageNet in 64x64, 500 a class for training.

    The paper has 10,000 images each for validation and testing "according to the predetermined split", but the labels
    of the official test images were never published: the 10,000 labelled ones of the official validation set are
    validation and test in turn, so that both have 25 of each class in whichever order they come.
    """
    data = published("tiny_imagenet", TINY_IMAGENET, train=100_000, test=10_000)
    assert data.test is not None
    validation, test = (Examples(data.test.images[first::2], data.test.labels[first::2]) for first in (0, 1))
    return replace(data, validation=validation, test=test)


def imagenet32() -> Dataset:
    """Classes of ImageNet in 32x32, the first 600 / 100 images of each, for Continual ImageNet's pairs.

    From a folder ``imagenet32`` or ``imagenet32_...`` with any of ImageNet's classes, averaged down where they are
    larger; without one, tiny-ImageNet's 200 classes, which have 500 / 50 images each.
    """
    folder = _local("imagenet32")
    data = _dataset(from_folder(folder, size=32) if folder else _local_or_hub("tiny_imagenet", TINY_IMAGENET, size=32))
    if data.test is None:
        raise ValueError(f"expected test examples in {folder}, found none: add test-*.parquet")
    fewest = [examples.labels.bincount(minlength=data.classes).min() for examples in (data.train, data.test)]
    return replace(
        data,
        train=_first_of_each_class(data.train, 600),
        test=_first_of_each_class(data.test, 100),
        subset=bool(fewest[0] < 600 or fewest[1] < 100),
    )


TINY_IMAGENET = Hub("zh-plus/tiny-imagenet", test="valid")
_MNIST = partial(published, "mnist", Hub("ylecun/mnist"), test=10_000)

DATASETS: dict[str, Callable[[], Dataset]] = {
    "digits": digits,
    "mnist": partial(_MNIST, train=12_800),
    "mnist-60000": partial(_MNIST, train=60_000),
    "fashion-mnist": partial(
        published, "fashion_mnist", Hub("zalando-datasets/fashion_mnist"), train=12_800, test=10_000
    ),
    "emnist": partial(published, "emnist_balanced", Hub("Royc30ne/emnist-balanced"), train=100_000, test=18_800),
    "svhn": partial(
        published,
        "svhn",
        Hub("ufldl-stanford/svhn", "cropped_digits"),
        train=50_000,
        validation=5_000,
        test=21_032,
    ),
    "cifar10": partial(published, "cifar10", Hub("uoft-cs/cifar10"), train=50_000, validation=1_000, test=9_000),
    "cifar100": partial(published, "cifar100", Hub("uoft-cs/cifar100"), train=50_000, validation=1_000, test=9_000),
    "tiny-imagenet": tiny_imagenet,
    "imagenet32": imagenet32,
}


def load(name: str) -> Dataset:
    """The data set that a name stands for.

    Args:
        name: an entry of ``DATASETS``; or a folder with ``train-*.parquet`` and, if there are any, ``test-*.parquet``;
            or ``package.module:function``, which is called without arguments and returns a :class:`Dataset` or tensors
            (images, labels).

    Raises:
        ValueError: for anything else, and for images or labels that are not as :class:`Examples` wants them.
        FileNotFoundError: when the files are neither on this machine nor to be had.
    """
    if name in DATASETS:
        return DATASETS[name]()
    if Path(name).is_dir():
        return _dataset(from_folder(Path(name)))
    if ":" not in name:
        known(name, DATASETS, "data set, folder of train-*.parquet or package.module:function")
    made = imported(name)()
    if isinstance(made, Dataset):
        data = made
    elif isinstance(made, tuple) and [type(each) for each in made] == [Tensor, Tensor]:
        train = Examples(made[0], made[1].long())
        _check(train, int(train.labels.max()) + 1, name)
        data = Dataset(train, None, None, int(train.labels.max()) + 1, *_normalisation(train.images))
    else:
        raise ValueError(f"expected a Dataset or tensors (images, labels) from {name}, got {type(made).__name__}")
    for examples in (data.train, data.validation, data.test):
        if examples is not None:
            _check(examples, data.classes, name)
    return data


def imported(name: str) -> Callable[..., Any]:
    """The function that ``package.module:function`` names."""
    try:
        function = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"expected package.module:function, got {name!r} ({error}): "
            "check the spelling, and put the folder that holds it on PYTHONPATH"
        ) from error
    if not callable(function):
        raise ValueError(f"expected a function, got {type(function).__name__} at {name!r}: name a function")
    made: Callable[..., Any] = function
    return made


def _local(name: str) -> Path | None:
    """The folder of a data set under ``SUPPLE_DATA``; the whole one before a subset."""
    given = os.environ.get("SUPPLE_DATA")
    if not given:
        return None
    root = Path(given).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"expected SUPPLE_DATA to name a folder, got {given!r}: correct or unset it")
    return next((path for path in (root / name, *sorted(root.glob(f"{name}_*"))) if path.is_dir()), None)


def _local_or_hub(name: str, hub: Hub, size: int | None = None) -> Decoded:
    folder = _local(name)
    if folder:
        return from_folder(folder, size)
    try:
        return from_hub(hub, size)
    except Exception as error:  # of many kinds, by what is wrong with the network
        raise FileNotFoundError(
            f"expected {hub.name} from the Hugging Face hub, got {type(error).__name__}: connect to the network once, "
            f"or set SUPPLE_DATA to a folder that holds {name}/train-*.parquet and {name}/test-*.parquet"
        ) from error


def _dataset(decoded: Decoded) -> Dataset:
    train, test = Examples(*decoded.train), Examples(*decoded.test) if decoded.test else None
    mean, std = _normalisation(train.images, decoded)
    return Dataset(train, None, test, len(decoded.names), mean, std, names=decoded.names)


def _normalisation(images: Tensor, known: Decoded | None = None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if images.shape[1] == 1:
        return (0.0,), (1.0,)
    return (known.mean, known.std) if known else channel_statistics(images)


def _part(examples: Examples, start: int, end: int) -> Examples:
    return Examples(examples.images[start:end], examples.labels[start:end])


def _first_of_each_class(examples: Examples, count: int) -> Examples:
    order = examples.labels.argsort(stable=True)
    counts = examples.labels.bincount()
    place = torch.arange(len(order)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    kept = order[place < count].sort().values
    if len(kept) == len(examples):
        return examples  # which other processes share
    return Examples(examples.images[kept], examples.labels[kept])


def _check(examples: Examples, classes: int, name: str) -> None:
    images, labels = examples.images, examples.labels
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise ValueError(
            f"expected uint8 images (n, channels, height, width), got {images.dtype} {tuple(images.shape)} "
            f"from {name}: give whole numbers from 0 to 255"
        )
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1] or not len(labels):
        raise ValueError(
            f"expected {len(images)} labels, int64, got {labels.dtype} {tuple(labels.shape)} from {name}: "
            "give one whole number for each image"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"expected labels from 0 to {classes - 1}, got {labels.min()} to {labels.max()} from {name}: "
            "number the classes from 0"
        )
