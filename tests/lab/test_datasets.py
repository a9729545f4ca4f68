"""Data sets: ranges, shapes, and that they are what their source holds."""

import torch
from sklearn.datasets import load_digits

from supple.lab.datasets import Dataset, Examples, digits


def test_digits_are_the_scans():
    source, data = load_digits(), digits()
    assert data.train.images.shape == (1797, 1, 8, 8)
    assert (data.validation, data.test, data.subset) == (None, None, False)
    # Sixteenths as bytes and back: to half a step of 1/255.
    expected = torch.from_numpy(source.images).float().unsqueeze(1) / 16
    torch.testing.assert_close(data.normalized(data.train.images), expected, rtol=0, atol=0.5 / 255 + 1e-6)
    assert data.train.labels.tolist() == source.target.tolist()


def test_inputs_are_bytes_over_255():
    images = torch.arange(256, dtype=torch.uint8).view(4, 1, 8, 8)
    data = Dataset(Examples(images, torch.zeros(4, dtype=torch.int64)), None, None, 1, (0.0,), (1.0,))
    torch.testing.assert_close(data.normalized(images).flatten(), torch.linspace(0, 1, 256))
    assert torch.equal(data.normalized(images), images.float() / 255)
