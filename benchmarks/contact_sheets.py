"""One picture per data set, to see whether images are upright, in the right colours and under the right labels.

    SUPPLE_DATA=... python benchmarks/contact_sheets.py sheets/       # every data set that is available; a minute

One row per class: its first training images and, after a gap, its first test images. Don't publish the pictures: most
licences forbid to redistribute the images.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from PIL import Image, ImageDraw
from torch import Tensor

from supple.lab.datasets import DATASETS, Dataset, load

TILE, GAP, LABEL, ROWS = 64, 4, 150, 20
TRAIN, TEST = 10, 5


@dataclass(frozen=True)
class Sheets:
    """One picture per data set, to see whether images are upright, in the right colours and under the right labels."""

    folder: tyro.conf.Positional[Path]
    """Folder for the pictures."""
    datasets: tuple[str, ...] = tuple(DATASETS)
    """Data sets: names, folders of parquet files, or functions."""

    def __call__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in self.datasets:
            try:
                picture = sheet(load(name))
            except FileNotFoundError as error:
                print(f"{name}: left out, {error}")
            else:
                path = self.folder / f"{Path(name.replace(':', '-')).name}.png"
                picture.save(path)
                print(f"{name}: {path}")


def sheet(data: Dataset) -> Image.Image:
    """The picture of a data set, with up to twenty evenly spaced classes."""
    classes = torch.linspace(0, data.classes - 1, min(ROWS, data.classes)).round().long().tolist()
    width = LABEL + (TRAIN + TEST) * (TILE + GAP) + TILE
    picture = Image.new("RGB", (width, len(classes) * (TILE + GAP) + GAP), "white")
    draw = ImageDraw.Draw(picture)
    for row, label in enumerate(classes):
        top = GAP + row * (TILE + GAP)
        draw.text((GAP, top + TILE / 3), f"{label}: {data.names[label] if data.names else ''}"[:24], "black")
        left = LABEL
        for part, count in ((data.train, TRAIN), (data.test, TEST)):
            if part:
                for image in part.images[(part.labels == label).nonzero().flatten()[:count]]:
                    picture.paste(tile(image), (left, top))
                    left += TILE + GAP
            left = LABEL + TRAIN * (TILE + GAP) + TILE // 2
    return picture


def tile(image: Tensor) -> Image.Image:
    """An image ``(channels, height, width)``, scaled to the size of a tile."""
    pixels = image.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(pixels).resize((TILE, TILE), Image.Resampling.NEAREST)


if __name__ == "__main__":
    tyro.cli(Sheets)()
