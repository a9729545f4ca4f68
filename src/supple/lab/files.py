"""Images and labels from files on this machine or the Hugging Face hub: decoded once, then mapped from a cache.

The files are parquet as on the hub: a column ``image`` (or ``img``) of encoded images and a column ``label`` (or
``fine_label``) of integers. Class names, if there are any, are in the file.
"""

import contextlib
import gzip
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from supple.errors import is_written_for_users

if TYPE_CHECKING:
    import datasets
    from PIL.Image import Image

VERSION = 1
"""Version of the cache's format; increase it to decode everything again."""
IMAGES = ("image", "img")
LABELS = ("label", "fine_label")
EMNIST = "emnist-balanced"

Split = tuple[Tensor, Tensor]
"""Images, uint8 ``(n, channels, height, width)``, and labels, int64 ``(n,)``."""


@dataclass(frozen=True)
class Decoded:
    """All examples of a source."""

    train: Split
    test: Split | None
    names: tuple[str, ...]
    """Names of the classes."""
    mean: tuple[float, ...]
    """Mean of each channel over all training images, as numbers from 0 to 1."""
    std: tuple[float, ...]


@dataclass(frozen=True)
class Source:
    """Where a published data set is stored."""

    folder: str
    """Its folder's name under ``SUPPLE_DATA``; a subset's name adds an underscore and a suffix."""
    hub: str
    """Its name on the Hugging Face hub."""
    path: str | None
    """The folder of its parquet files on the hub; None for EMNIST, which the hub has in its authors' own format."""
    test: str = "test"
    """The hub's name of the held-out split."""
    revision: str | None = None
    """A commit of its repository on the hub; None is the newest."""


def decoded(source: Source, size: int | None = None) -> Decoded:
    """The examples of a published data set, from ``SUPPLE_DATA`` if it is there, otherwise from the hub.

    Args:
        source: where to look.
        size: height and width that larger images are averaged down to; None keeps their size.
    """
    folder = local(source.folder)
    return from_folder(folder, size) if folder else _from_hub(source, size)


def local(name: str) -> Path | None:
    """The folder of a data set under ``SUPPLE_DATA``; the full data set is preferred to a subset."""
    given = os.environ.get("SUPPLE_DATA")
    if not given:
        return None
    root = Path(given).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"expected SUPPLE_DATA to name a folder, got {given!r}: correct or unset it")
    return next((path for path in (root / name, *sorted(root.glob(f"{name}_*"))) if path.is_dir()), None)


def from_folder(folder: Path, size: int | None = None) -> Decoded:
    """The examples in ``train-*.parquet`` and, if there are any, ``test-*.parquet``; ``size`` as in :func:`decoded`."""
    files = _files(folder)
    versions = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for paths in files.values() for path in paths]
    return _cached(folder.name, [str(folder.resolve()), versions, size], partial(_decode, files, size=size))


def _from_hub(source: Source, size: int | None) -> Decoded:
    def decode(scratch: Path) -> Decoded:
        from huggingface_hub import snapshot_download

        wanted = [f"{source.path}/{split}-*" for split in ("train", source.test)] if source.path else [f"{EMNIST}-*"]
        try:
            snapshot = snapshot_download(
                source.hub, repo_type="dataset", revision=source.revision, allow_patterns=wanted
            )
        except Exception as error:  # a failing network raises many kinds
            raise FileNotFoundError(
                f"expected {source.hub} from the Hugging Face hub, got {type(error).__name__}: connect to the network "
                f"once, or set SUPPLE_DATA to a folder with {source.folder}/train-*.parquet and test-*.parquet"
            ) from error
        if source.path is None:
            return _decode_emnist(Path(snapshot))
        return _decode(_files(Path(snapshot, source.path), source.test), scratch, size=size)

    return _cached(source.folder, [vars(source), size], decode)


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation (1 if constant) of each channel of uint8 images, with values scaled to 0 to 1."""
    sums = torch.zeros(2, images.shape[1], dtype=torch.float64)
    for chunk in torch.split(images, 1000):
        values = chunk.double() / 255
        sums += torch.stack([values.sum((0, 2, 3)), values.square().sum((0, 2, 3))])
    mean, square = sums / (images.numel() / images.shape[1])
    std = (square - mean.square()).clamp(min=0).sqrt()
    return tuple(mean.tolist()), tuple(std.where(std > 1e-6, 1).tolist())


def _files(folder: Path, test: str = "test") -> dict[str, list[Path]]:
    files = {split: sorted(folder.glob(f"{name}-*.parquet")) for split, name in (("train", "train"), ("test", test))}
    if not files["train"]:
        raise FileNotFoundError(f"expected train-*.parquet in {folder}, found none: name the folder that holds them")
    return files


def _cached(name: str, key: Sequence[Any], decode: Callable[[Path], Decoded]) -> Decoded:
    """The result of ``decode``, from the cache if it is there; ``decode`` gets a folder for temporary files."""
    from rich.console import Console

    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "supple")
    folder = Path(os.environ.get("SUPPLE_CACHE") or default).expanduser()
    digest = hashlib.sha256(json.dumps([VERSION, *key]).encode()).hexdigest()[:12]
    path = folder / f"{name}-{digest}.pt"
    with contextlib.suppress(Exception):  # missing or damaged: decode again
        return _load(path)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        with contextlib.suppress(Exception):  # another process made it meanwhile
            return _load(path)
        Console(stderr=True).print(f"decoding {name} into {folder}, once", highlight=False, soft_wrap=True)
        scratch = folder / ".decoding"
        shutil.rmtree(scratch, ignore_errors=True)  # left behind by a killed process
        scratch.mkdir()
        try:
            contents, whole = decode(scratch), scratch / "decoded.pt"
            try:
                torch.save(vars(contents), whole)
            except RuntimeError as error:  # torch's own, which names neither the disk nor the file
                raise OSError(
                    f"expected room for {name} in {folder}, got a failed write: make room, or set SUPPLE_CACHE to "
                    "another folder"
                ) from error
            whole.replace(path)
        finally:
            shutil.rmtree(scratch)
    return _load(path)


def _load(path: Path) -> Decoded:
    # Memory-mapped, so that all processes on a machine share it.
    return Decoded(**torch.load(path, mmap=True, weights_only=True))


def _decode(files: Mapping[str, Sequence[Path]], scratch: Path, *, size: int | None) -> Decoded:
    import datasets

    datasets.disable_progress_bars()  # this takes no time
    tables = {split: {path: _table(path, scratch) for path in paths} for split, paths in files.items() if paths}
    splits = {split: (_images(by_path, split, size), _labels(by_path)) for split, by_path in tables.items()}
    channels = max(images.shape[1] for images, _ in splits.values())
    splits = {split: (images.expand(-1, channels, -1, -1), labels) for split, (images, labels) in splits.items()}
    if len({images.shape[1:] for images, _ in splits.values()}) > 1:
        shapes = " and ".join(
            f"{images.shape[2]}x{images.shape[3]} in {split}" for split, (images, _) in splits.items()
        )
        raise ValueError(f"expected images of one size, got {shapes}: resize them")
    features = [table.features[_column(table, LABELS)] for by_path in tables.values() for table in by_path.values()]
    if len(named := {tuple(getattr(feature, "names", None) or ()) for feature in features}) > 1:
        raise ValueError(f"expected files with the same classes, got {' and '.join(map(str, named))}: write them again")
    names = named.pop() or tuple(str(label) for label in range(int(splits["train"][1].max()) + 1))
    for split, (_, labels) in splits.items():
        if labels.min() < 0 or labels.max() >= len(names):
            raise ValueError(
                f"expected labels from 0 to {len(names) - 1}, got {labels.min()} to {labels.max()} in {split}: "
                "leave out what has no label, and number the classes from 0"
            )
    return Decoded(splits["train"], splits.get("test"), names, *channel_statistics(splits["train"][0]))


def _table(path: Path, scratch: Path) -> "datasets.Dataset":
    """The rows of a file; an error if there are none."""
    import datasets

    try:
        # Not load_dataset, which sends a usage report over the network.
        table = datasets.Dataset.from_parquet(str(path), cache_dir=str(scratch / "tables"))
    except Exception as error:  # a damaged file raises many kinds
        cause = error.__cause__ or error
        raise ValueError(f"expected a parquet file with rows, got {path} ({cause}): make it again") from error
    if not len(table):
        raise ValueError(f"expected a parquet file with rows, got none in {path}: leave it out")
    return table


def _column(table: "datasets.Dataset", names: Sequence[str]) -> str:
    for name in names:
        if name in table.column_names:
            return name
    raise ValueError(f"expected a column {' or '.join(names)}, got {', '.join(table.column_names)}: rename yours")


def _labels(tables: Mapping[Path, "datasets.Dataset"]) -> Tensor:
    parts = []
    for path, table in tables.items():
        column = _column(table, LABELS)
        for row, missing in enumerate(table.data.column(column).is_null().to_pylist()):
            if missing:
                raise ValueError(f"expected a label in each row, got none in row {row} of {path}: leave that row out")
        labels = table.with_format("numpy")[column][:]
        if not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(
                f"expected integers in column {column}, got {labels.dtype} in {path}: number the classes from 0"
            )
        parts.append(torch.from_numpy(labels.astype(np.int64)))
    return torch.cat(parts)


def _images(tables: Mapping[Path, "datasets.Dataset"], split: str, size: int | None) -> Tensor:
    """uint8 ``(n, channels, height, width)``: one channel if all images are grey, otherwise three."""
    from rich.console import Console
    from rich.progress import track

    console, total = Console(stderr=True), sum(len(table) for table in tables.values())
    bar = partial(track, console=console, transient=True, disable=not console.is_terminal)
    pixels, grey = np.empty(0), True
    for index, (image, one_channel) in enumerate(bar(_all_pixels(tables, size), split, total=total)):
        if not index:
            pixels = np.empty((total, *image.shape), np.uint8)
        if image.shape != pixels.shape[1:]:
            shapes = " and ".join("x".join(map(str, shape[:2])) for shape in (pixels.shape[1:], image.shape))
            raise ValueError(f"expected images of one size, got {shapes} in {split}: resize them")
        pixels[index] = image
        grey &= one_channel
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)[:, : 1 if grey else 3].contiguous()


def _all_pixels(tables: Mapping[Path, "datasets.Dataset"], size: int | None) -> Iterator[tuple[Any, bool]]:
    """The result of :func:`_pixels` for each image, in the order of the files."""
    import datasets

    image = datasets.Image()
    for path, table in tables.items():
        row, column = 0, _column(table, IMAGES)
        try:
            encodings = table.cast_column(column, datasets.Image(decode=False)).data.column(column)
            for chunk in encodings.chunks:  # to iterate over the table takes ten times as long
                for encoded in chunk.to_pylist():
                    if encoded is None:
                        raise ValueError("expected an image, got none")
                    yield _pixels(image.decode_example(encoded), size)
                    row += 1
        except Exception as error:  # a damaged image raises many kinds
            text = error if is_written_for_users(error) else f"expected an image, got {type(error).__name__}: {error}"
            raise ValueError(f"{text} (row {row} of {path})") from error


def _pixels(image: "Image", size: int | None) -> tuple[Any, bool]:
    """RGB bytes ``(height, width, 3)``, and whether the image was grey."""
    from PIL.Image import Resampling

    if image.mode[0] in "IF":
        raise ValueError(f"expected images of 8 bits a channel, got mode {image.mode}: convert them")
    colours = image.convert("RGB")
    if size is not None and colours.size != (size, size):
        colours = colours.resize((size, size), Resampling.BOX)
    return np.asarray(colours), image.mode in ("1", "L")


def _decode_emnist(folder: Path) -> Decoded:
    """Decode EMNIST's own files, in which the images are transposed."""

    def numbers(name: str, header: int) -> Any:
        data = gzip.decompress((folder / f"{EMNIST}-{name}-ubyte.gz").read_bytes())
        return np.frombuffer(data, np.uint8, offset=header).copy()

    def split(name: str) -> Split:
        images = torch.from_numpy(numbers(f"{name}-images-idx3", 16)).view(-1, 1, 28, 28).mT.contiguous()
        return images, torch.from_numpy(numbers(f"{name}-labels-idx1", 8)).long()

    mapping = (folder / f"{EMNIST}-mapping.txt").read_text().split("\n")
    names = tuple(chr(int(line.split()[1])) for line in mapping if line.strip())  # "class code" a line
    train = split("train")
    return Decoded(train, split("test"), names, *channel_statistics(train[0]))
