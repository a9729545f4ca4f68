"""Data sets: ranges, shapes, and that they are what their source holds."""

import pytest
import torch
from sklearn.datasets import load_digits

from supple.lab.datasets import DATASETS, Dataset, digits


@pytest.fixture(params=DATASETS)
def data(request):
    return DATASETS[request.param]()


def test_images_and_labels_fit_together(data):
    assert data.images.dtype == torch.uint8
    assert data.images.ndim == 4
    assert data.labels.dtype == torch.int64
    assert data.labels.shape == data.images.shape[:1]
    assert set(data.labels.tolist()) == set(range(data.classes))


def test_images_use_the_whole_range(data):
    inputs = data.inputs()
    assert (inputs.dtype, inputs.shape) == (torch.float32, data.images.shape)
    assert (inputs.min(), inputs.max()) == (0, 1)


def test_digits_are_the_scans():
    source, data = load_digits(), digits()
    assert data.images.shape == (1797, 1, 8, 8)
    # Sixteenths as bytes and back: to half a step of 1/255.
    expected = torch.from_numpy(source.images).float().unsqueeze(1) / 16
    torch.testing.assert_close(data.inputs(), expected, rtol=0, atol=0.5 / 255 + 1e-6)
    assert data.labels.tolist() == source.target.tolist()


def test_inputs_are_bytes_over_255():
    images = torch.arange(256, dtype=torch.uint8).view(4, 1, 8, 8)
    inputs = Dataset(images, torch.zeros(4, dtype=torch.int64), classes=1).inputs()
    torch.testing.assert_close(inputs.flatten(), torch.linspace(0, 1, 256))
