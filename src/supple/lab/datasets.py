"""The images that are learned from, as uint8 tensors."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Dataset:
    """Images with their labels."""

    images: Tensor
    """uint8 ``(n, channels, height, width)``."""
    labels: Tensor
    """int64 ``(n,)``, from 0 to ``classes - 1``."""
    classes: int

    def inputs(self, device: torch.device | str = "cpu") -> Tensor:
        """The images on ``device`` as float32 from 0 to 1."""
        return self.images.to(device).float() / 255


def digits() -> Dataset:
    """1,797 scans of handwritten digits, 8x8 grey, 10 classes, bundled with scikit-learn (UCI's optical test set)."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)  # 0 to 16
    images = torch.from_numpy(pixels * (255 / 16)).round().to(torch.uint8)
    return Dataset(images.reshape(-1, 1, 8, 8), torch.from_numpy(labels).long(), classes=10)


DATASETS: dict[str, Callable[[], Dataset]] = {"digits": digits}
