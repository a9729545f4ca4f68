"""Image data sets as uint8 tensors, with the splits of the protocols.

The environment variable ``SUPPLE_DATA`` names a folder with one folder of parquet files for each data set (``mnist``,
or ``mnist_subset`` for a part of it). A data set that is not there comes from the Hugging Face hub. Decoded tensors are
cached under ``SUPPLE_CACHE`` (default ``~/.cache/supple``).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from supple.errors import called, known
from supple.lab.files import Decoded, Source, channel_statistics, decoded, from_folder, local


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
    """Training, validation and test examples of one data set."""

    train: Examples
    validation: Examples | None
    """Examples for choosing hyperparameters; None where the protocol has none."""
    test: Examples | None
    classes: int
    mean: tuple[float, ...]
    """Mean of each channel's values (0 to 1) over all training images: networks get standardized pixels. The paper does
    not say how its images were scaled, and it matters: on the twentieth task of random labels on MNIST, its regularizer
    (strength 1e-2) reaches an accuracy of 0.68 with grey values from 0 to 1, and 0.92 with standardized ones: see
    docs/reproduction.md."""
    std: tuple[float, ...]
    subset: bool = False
    """Whether this is only a part of the protocol's data; results are then labelled so."""
    names: tuple[str, ...] = ()
    """Names of the classes, if they have any."""

    def thinned(self, count: int | None) -> "Dataset":
        """The same data set with only ``count`` training examples, evenly spaced over all; None keeps all."""
        if count is None:
            return self
        if not 0 < count <= len(self.train):
            raise ValueError(f"expected 1 to {len(self.train)} training examples, got {count}: choose another number")
        kept = torch.arange(count) * len(self.train) // count
        return replace(self, train=Examples(self.train.images[kept], self.train.labels[kept]))

    def to(self, device: torch.device | str) -> "Dataset":
        """The same data set with all examples on ``device``."""

        def moved(part: Examples | None) -> Examples | None:
            return part and Examples(part.images.to(device), part.labels.to(device))

        train = moved(self.train)
        assert train
        return replace(self, train=train, validation=moved(self.validation), test=moved(self.test))

    def normalized(self, images: Tensor) -> Tensor:
        """uint8 ``(..., channels, height, width)`` as float32, (pixels / 255 - mean) / std, on the same device."""
        inputs = images.float() / 255
        for channel, mean, std in zip(inputs.unbind(-3), self.mean, self.std, strict=True):
            channel.sub_(mean).div_(std)  # Python numbers: nothing is copied to the device
        return inputs


def digits() -> Dataset:
    """1,797 scans of handwritten digits, 8x8 grey, 10 classes, bundled with scikit-learn (UCI's optical test set).

    Pixels are not standardized: they stay between 0 and 1.
    """
    # Read the file of sklearn.datasets.load_digits directly: importing sklearn would take a second in each process.
    path = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    table = np.loadtxt(str(path), delimiter=",", dtype=np.int64)
    pixels, labels = np.hsplit(table, [64])  # 0 to 16
    images = torch.from_numpy(pixels * (255 / 16)).round().to(torch.uint8)
    examples = Examples(images.reshape(-1, 1, 8, 8), torch.from_numpy(labels[:, 0].copy()))
    return Dataset(examples, None, None, 10, (0.0,), (1.0,), names=tuple("0123456789"))


def divided_digits() -> Dataset:
    """The same in parts: the first 1,300 scans for training, the next 150 for validation, the last 347 for testing."""
    data = digits()
    return replace(
        data,
        train=_part(data.train, 0, 1_300),
        validation=_part(data.train, 1_300, 1_450),
        test=_part(data.train, 1_450, len(data.train)),
    )


def published(source: Source, *, train: int, test: int, validation: int = 0) -> Dataset:
    """The first examples of a published data set (App. B).

    Args:
        source: where the data set is stored.
        train: number of training examples.
        test: number of the data set's test examples that are used for testing.
        validation: number of its test examples that are used for validation: those before the ones for testing. If it
            has fewer than ``validation + test``, they are split in the same proportion.
    """
    data, all_test = _with_test(decoded(source), source.folder)
    held_out = min(len(all_test), validation + test)
    chosen_by = validation * held_out // (validation + test)
    return replace(
        data,
        train=_part(data.train, 0, train),
        validation=_part(all_test, 0, chosen_by) if validation else None,
        test=_part(all_test, chosen_by, held_out),
        subset=len(data.train) < train or held_out < validation + test,
    )


def tiny_imagenet() -> Dataset:
    """200 classes of ImageNet in 64x64, with 500 training images per class.

    The paper has 10,000 images each for validation and testing "according to the predetermined split", but the labels
    of the official test images were never published. So the 10,000 labelled images of the official validation set are
    split here: in each class, every other image is for validation, and the rest for testing.
    """
    data, held_out = _with_test(decoded(TINY_IMAGENET), TINY_IMAGENET.folder)
    odd = _places(held_out.labels) % 2 == 1
    validation, test = _chosen(held_out, ~odd), _chosen(held_out, odd)
    return replace(data, validation=validation, test=test, subset=len(data.train) < 100_000 or len(held_out) < 10_000)


def imagenet32(train: int = 600) -> Dataset:
    """Classes of ImageNet in 32x32, as in Continual ImageNet: the first ``train`` / 100 images of each class.

    Every other one of the 100 is for validation, so that strengths need not be chosen by test accuracy. The images come
    from a folder ``imagenet32`` or ``imagenet32_...`` with any of ImageNet's classes; larger ones are averaged down.
    Without such a folder, tiny-ImageNet's 200 classes are used, with 500 / 50 images per class.
    """
    folder = local("imagenet32")
    contents = from_folder(folder, size=32) if folder else decoded(TINY_IMAGENET, size=32)
    data, held_out = _with_test(contents, "imagenet32")
    fewest = [examples.labels.bincount(minlength=data.classes).min() for examples in (data.train, held_out)]
    places = _places(held_out.labels)
    return replace(
        data,
        train=_chosen(data.train, _places(data.train.labels) < train),
        validation=_chosen(held_out, (places < 100) & (places % 2 == 0)),
        test=_chosen(held_out, (places < 100) & (places % 2 == 1)),
        subset=bool(fewest[0] < train or fewest[1] < 100 or data.classes < 1_000),
    )


# Revisions that other published code pins; for two data sets none is known.
TINY_IMAGENET = Source(
    "tiny_imagenet", "zh-plus/tiny-imagenet", "data", "valid", revision="5a77092c28e51558c5586e9c5eb71a7e17a5e43f"
)
_parts_of_mnist = partial(
    published, Source("mnist", "ylecun/mnist", "mnist", revision="77f3279092a1c1579b2250db8eafed0ad422088c")
)
_mnist = partial(_parts_of_mnist, test=10_000)


def _scaled(made: Callable[[], Dataset], mean: float, std: float) -> Dataset:
    return replace(made(), mean=(mean,), std=(std,))


_all_of_mnist = partial(_mnist, train=60_000)
_emnist = partial(published, Source("emnist_balanced", "Royc30ne/emnist-balanced", None), test=18_800)
_cifar = partial(published, train=50_000, validation=1_000, test=9_000)

DATASETS: dict[str, Callable[[], Dataset]] = {
    "digits": digits,
    "mnist": partial(_mnist, train=12_800),
    "mnist-validated": partial(_parts_of_mnist, train=12_800, validation=1_000, test=9_000),
    "mnist-1200-from-0": partial(_scaled, partial(_mnist, train=1_200), 0.0, 1.0),
    "mnist-60000": _all_of_mnist,
    "mnist-60000-from-0": partial(_scaled, _all_of_mnist, 0.0, 1.0),  # grey values from 0 to 1
    "mnist-60000-from-minus-1": partial(_scaled, _all_of_mnist, 0.5, 0.5),  # from -1 to 1
    "fashion-mnist": partial(
        published,
        Source(
            "fashion_mnist",
            "zalando-datasets/fashion_mnist",
            "fashion_mnist",
            revision="531be5e2ccc9dba0c201ad3ae567a4f3d16ecdd2",
        ),
        train=12_800,
        test=10_000,
    ),
    "emnist": partial(_emnist, train=100_000),
    "emnist-112800-from-minus-1": partial(_scaled, partial(_emnist, train=112_800), 0.5, 0.5),
    "svhn": partial(
        published,
        Source("svhn", "ufldl-stanford/svhn", "cropped_digits"),
        train=50_000,
        validation=5_000,
        test=21_032,
    ),
    "cifar10": partial(
        _cifar,
        Source("cifar10", "uoft-cs/cifar10", "plain_text", revision="0b2714987fa478483af9968de7c934580d0bb9a2"),
    ),
    "cifar100": partial(
        _cifar,
        Source("cifar100", "uoft-cs/cifar100", "cifar100", revision="aadb3af77e9048adbea6b47c21a81e47dd092ae5"),
    ),
    "tiny-imagenet": tiny_imagenet,
    "imagenet32": imagenet32,
    "imagenet32-75": partial(imagenet32, train=75),
    "digits-1300": divided_digits,
}


def load(name: str) -> Dataset:
    """The data set with this name.

    Args:
        name: an entry of ``DATASETS``; or a folder with ``train-*.parquet`` and, if there are any, ``test-*.parquet``;
            or ``package.module:function``, which is called without arguments and returns a :class:`Dataset` or tensors
            (images, labels).

    Raises:
        ValueError: for any other name, for images or labels that don't fit :class:`Examples`, and for a data set with a
            standard deviation that is not positive.
        FileNotFoundError: when the files are neither on this machine nor can be downloaded.
    """
    if name in DATASETS:
        return DATASETS[name]()
    if Path(name).is_dir():
        return _dataset(from_folder(Path(name)))
    if ":" not in name:
        known(name, DATASETS, "data set, folder of train-*.parquet or package.module:function")
    match called(name):
        case Dataset() as data:
            for examples in (data.train, data.validation, data.test):
                if examples is not None:
                    _check(examples, data.classes, name)
            channels = data.train.images.shape[1]
            if not (len(data.mean) == len(data.std) == channels and min(data.std) > 0):
                raise ValueError(
                    f"expected a mean and a positive standard deviation for each of {channels} channels, got "
                    f"{data.mean} and {data.std} from {name}: correct them; 1 will do for a constant channel"
                )
            return data
        case (Tensor() as images, Tensor() as labels):
            labels = labels if labels.is_floating_point() else labels.long()
            classes = int(labels.max()) + 1 if len(labels) else 0
            _check(Examples(images, labels), classes, name)
            names = tuple(str(label) for label in range(classes))
            return _dataset(Decoded((images, labels), None, names, *channel_statistics(images)))
        case other:
            raise ValueError(
                f"expected a Dataset or tensors (images, labels) from {name}, got {type(other).__name__}: return those"
            )


def _dataset(contents: Decoded) -> Dataset:
    train, test = Examples(*contents.train), Examples(*contents.test) if contents.test else None
    return Dataset(train, None, test, len(contents.names), contents.mean, contents.std, names=contents.names)


def _with_test(contents: Decoded, name: str) -> tuple[Dataset, Examples]:
    data = _dataset(contents)
    if data.test is None:
        raise FileNotFoundError(f"expected test examples of {name}, found none: add test-*.parquet to its folder")
    return data, data.test


def _part(examples: Examples, start: int, end: int) -> Examples:
    return Examples(examples.images[start:end], examples.labels[start:end])


def _chosen(examples: Examples, mask: Tensor) -> Examples:
    # If nothing is left out, don't copy: other processes share this memory.
    return examples if mask.all() else Examples(examples.images[mask], examples.labels[mask])


def _places(labels: Tensor) -> Tensor:
    """For each example, how many examples of the same class come before it."""
    order, counts = labels.argsort(stable=True), labels.bincount()
    before = (counts.cumsum(0) - counts).repeat_interleave(counts)
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order)) - before)


def _check(examples: Examples, classes: int, name: str) -> None:
    images, labels = examples.images, examples.labels
    if not len(images):
        raise ValueError(f"expected images, got none from {name}: return at least one")
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
