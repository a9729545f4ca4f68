"""Images and labels out of parquet files in the Hugging Face hub's schema: decoded once, then mapped from a cache.

The schema: a column ``image`` (or ``img``) of encoded images and a column ``label`` (or ``fine_label``) of integers,
whose class names are in the file where it has any. Files are ``train-*.parquet`` and ``test-*.parquet``.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    import datasets
    from PIL.Image import Image

VERSION = 1
"""Of what the cache holds: another number, and everything is decoded again."""


@dataclass(frozen=True)
class Decoded:
    """All examples of a source."""

    train: tuple[Tensor, Tensor]
    """Images, uint8 ``(n, channels, height, width)``, and labels, int64 ``(n,)``."""
    test: tuple[Tensor, Tensor] | None
    names: tuple[str, ...]
    """Of the classes."""
    mean: tuple[float, ...]
    """Of each channel over all training images, as numbers from 0 to 1."""
    std: tuple[float, ...]


@dataclass(frozen=True)
class Hub:
    """A data set on the Hugging Face hub."""

    name: str
    config: str | None = None
    test: str = "test"
    """What its held-out split is called."""
    revision: str | None = None
    """A commit of its repository; None is the newest."""


def from_folder(folder: Path, size: int | None = None) -> Decoded:
    """The examples in a folder's ``train-*.parquet`` and ``test-*.parquet``, of which the latter may be missing.

    Args:
        folder: where the files are.
        size: height and width that images are averaged down to; None where all have one size already.
    """
    files = {split: sorted(folder.glob(f"{split}-*.parquet")) for split in ("train", "test")}
    if not files["train"]:
        raise FileNotFoundError(f"expected train-*.parquet in {folder}, found none: name the folder that holds them")
    found = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for paths in files.values() for path in paths]

    def tables(scratch: str) -> dict[str, "datasets.Dataset"]:
        from datasets import Dataset

        # Not load_dataset, which reports each use over the network.
        return {
            split: Dataset.from_parquet([str(path) for path in paths], cache_dir=f"{scratch}/{split}")
            for split, paths in files.items()
            if paths
        }

    return _cached(folder.name, [str(folder.resolve()), found, size], tables, size)


def from_hub(hub: Hub, size: int | None = None) -> Decoded:
    """The examples of a data set on the hub, downloaded when they are not in the cache; ``size`` as above."""

    def tables(scratch: str) -> dict[str, "datasets.Dataset"]:
        from datasets import load_dataset
        from huggingface_hub import HfApi

        HfApi().dataset_info(
            hub.name, timeout=10
        )  # without a network fails at once, where the next line tries for long
        splits = ("train", hub.test)
        found = load_dataset(hub.name, hub.config, split=splits, revision=hub.revision, cache_dir=scratch)
        return dict(zip(("train", "test"), found, strict=True))

    return _cached(hub.name.replace("/", "-"), [vars(hub), size], tables, size)


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 images, as numbers from 0 to 1."""
    sums = torch.zeros(2, images.shape[1], dtype=torch.float64)
    for chunk in torch.split(images, 1000):
        values = chunk.double() / 255
        sums += torch.stack([values.sum((0, 2, 3)), values.square().sum((0, 2, 3))])
    mean, square = sums / (images.numel() / images.shape[1])
    return tuple(mean.tolist()), tuple((square - mean.square()).clamp(min=0).sqrt().tolist())


def _cached(
    name: str, key: Sequence[Any], tables: Callable[[str], Mapping[str, "datasets.Dataset"]], size: int | None
) -> Decoded:
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "supple")
    folder = Path(os.environ.get("SUPPLE_CACHE") or default).expanduser()
    digest = hashlib.sha256(json.dumps([VERSION, *key]).encode()).hexdigest()[:12]
    path = folder / f"{name}-{digest}.pt"
    with contextlib.suppress(Exception):  # missing, or damaged in whichever way: made again
        return _load(path)
    import datasets

    datasets.disable_progress_bars()  # of what takes no time; downloads keep theirs
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".", dir=folder) as scratch:
        decoded = _decode(tables(scratch), name, size)
        whole = Path(scratch, "decoded.pt")
        torch.save(vars(decoded), whole)
        whole.replace(path)
    return _load(path)


def _load(path: Path) -> Decoded:
    # Mapped, so that all processes on a machine share the memory.
    return Decoded(**torch.load(path, mmap=True, weights_only=True))


def _decode(tables: Mapping[str, "datasets.Dataset"], name: str, size: int | None) -> Decoded:
    examples = {split: (_images(table, f"{name} {split}", size), _labels(table)) for split, table in tables.items()}
    channels = max(images.shape[1] for images, _ in examples.values())
    examples = {split: (images.expand(-1, channels, -1, -1), labels) for split, (images, labels) in examples.items()}
    shapes = {tuple(images.shape[1:]) for images, _ in examples.values()}
    if len(shapes) > 1:
        raise ValueError(f"expected images of one size, got {sorted(shapes)} in {name}: resize them")
    feature = tables["train"].features[_column(tables["train"], LABELS)]
    names = getattr(feature, "names", None) or [str(label) for label in range(int(examples["train"][1].max()) + 1)]
    for split, (_, labels) in examples.items():
        if labels.min() < 0 or labels.max() >= len(names):
            raise ValueError(
                f"expected labels from 0 to {len(names) - 1}, got {labels.min()} to {labels.max()} in {name} {split}: "
                "leave out what has no label, and number the classes from 0"
            )
    mean, std = channel_statistics(examples["train"][0])
    return Decoded(examples["train"], examples.get("test"), tuple(names), mean, std)


IMAGES = ("image", "img")
LABELS = ("label", "fine_label")


def _column(table: "datasets.Dataset", names: Sequence[str]) -> str:
    for name in names:
        if name in table.column_names:
            return name
    raise ValueError(f"expected a column {' or '.join(names)}, got {', '.join(table.column_names)}: rename yours")


def _labels(table: "datasets.Dataset") -> Tensor:
    column = _column(table, LABELS)
    labels = table.with_format("numpy")[column][:]
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"expected integers in column {column}, got {labels.dtype}: number the classes from 0")
    return torch.from_numpy(labels.astype(np.int64))


def _images(table: "datasets.Dataset", name: str, size: int | None) -> Tensor:
    """uint8 ``(n, channels, height, width)``: one channel where all images are grey, otherwise three."""
    import datasets
    from rich.console import Console
    from rich.progress import track

    column, console = _column(table, IMAGES), Console(stderr=True)
    images = table.cast_column(column, datasets.Image())[column]
    pixels, grey = np.empty(0), True
    bar = partial(track, console=console, transient=True, disable=not console.is_terminal)
    for index, image in enumerate(bar(images, f"decoding {name}", total=len(table))):
        found, one_channel = _pixels(image, size)
        if not index:
            pixels = np.empty((len(table), *found.shape), np.uint8)
        if found.shape != pixels.shape[1:]:
            shapes = " and ".join("x".join(map(str, shape[:2])) for shape in (pixels.shape[1:], found.shape))
            raise ValueError(f"expected images of one size, got {shapes} in {name}: resize them")
        pixels[index] = found
        grey &= one_channel
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)[:, : 1 if grey else 3].contiguous()


def _pixels(image: "Image", size: int | None) -> tuple[Any, bool]:
    """RGB bytes ``(height, width, 3)``, and whether the image was grey."""
    if image.mode[0] in "IF":
        raise ValueError(f"expected images of 8 bits a channel, got mode {image.mode}: convert them")
    grey = image.mode in ("1", "L")
    colours = image.convert("RGB")
    if size is not None and colours.size != (size, size):
        from PIL.Image import Resampling

        colours = colours.resize((size, size), Resampling.BOX)
    return np.asarray(colours), grey
