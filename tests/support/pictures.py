"""Small data sets, written as the Hugging Face hub writes them."""

import io

import datasets as hub
import numpy as np
import torch
from PIL import Image


def pictures(count, *shape, seed=0):
    """Random bytes ``(count, height, width)`` or ``(count, height, width, 3)``."""
    return np.random.default_rng(seed).integers(256, size=(count, *shape), dtype=np.uint8)


def as_tensor(pixels):
    pixels = torch.from_numpy(pixels)
    return pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)


def write(path, pixels, labels, *, image="image", label="label", names=None):
    """A parquet file as the hub has it; ``pixels`` a list of arrays."""
    features = hub.Features({image: hub.Image(), label: hub.ClassLabel(names=names) if names else hub.Value("int64")})
    encoded = []
    for array in pixels:
        png = io.BytesIO()
        Image.fromarray(array).save(png, "PNG")
        encoded.append({"bytes": png.getvalue(), "path": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    hub.disable_progress_bars()
    hub.Dataset.from_dict({image: encoded, label: list(labels)}, features=features).to_parquet(path)


def svhn(root, train, test):
    names = [str(digit) for digit in range(10)]
    write(root / "train-00000-of-00001.parquet", pictures(train, 32, 32, 3), np.arange(train) % 10, names=names)
    write(root / "test-00000-of-00001.parquet", pictures(test, 32, 32, 3, seed=1), np.arange(test) % 10, names=names)
