"""Data sets: split as published, normalized as they should be, found by their names."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from supple.lab import datasets, files
from supple.lab.datasets import Dataset, Examples, digits, load
from supple.lab.files import Decoded
from support.pictures import as_tensor, pictures, svhn, write

needs_real_data = pytest.mark.skipif(
    "SUPPLE_DATA" not in os.environ, reason="SUPPLE_DATA does not name a folder of real data sets"
)


# The embedded one, and what becomes of bytes.


def test_divided_digits_are_the_same_scans():
    whole, divided = digits().train, load("digits-1300")
    pieces = divided.train, divided.validation, divided.test
    assert [len(piece) for piece in pieces] == [1_300, 150, 347]
    assert torch.equal(torch.cat([piece.images for piece in pieces]), whole.images)
    assert torch.equal(torch.cat([piece.labels for piece in pieces]), whole.labels)


def test_digits_are_the_scans():
    source, data = load_digits(), digits()
    assert data.train.images.shape == (1797, 1, 8, 8)
    assert (data.validation, data.test, data.subset) == (None, None, False)
    # Sixteenths as bytes and back: to half a step of 1/255.
    expected = torch.from_numpy(source.images).float().unsqueeze(1) / 16
    torch.testing.assert_close(data.normalized(data.train.images), expected, rtol=0, atol=0.5 / 255 + 1e-6)
    assert data.train.labels.tolist() == source.target.tolist()


def test_grey_inputs_are_bytes_over_255():
    images = torch.arange(256, dtype=torch.uint8).view(4, 1, 8, 8)
    data = Dataset(Examples(images, torch.zeros(4, dtype=torch.int64)), None, None, 1, (0.0,), (1.0,))
    torch.testing.assert_close(data.normalized(images).flatten(), torch.linspace(0, 1, 256))
    assert torch.equal(data.normalized(images), images.float() / 255)


@pytest.mark.parametrize("leading", [(), (4,), (2, 3)])
def test_colours_are_standardised_each(leading):
    images = torch.randint(256, (*leading, 3, 5, 7), dtype=torch.uint8)
    before = images.clone()
    data = replace(digits(), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    expected = torch.empty(images.shape)
    for channel, (mean, std) in enumerate(zip(data.mean, data.std, strict=True)):
        expected[..., channel, :, :] = (images[..., channel, :, :].float() / 255 - mean) / std
    torch.testing.assert_close(data.normalized(images), expected)
    assert torch.equal(images, before)
    with pytest.raises(ValueError, match="zip"):
        data.normalized(images[..., :2, :, :])


# Published data sets.


def test_a_subset_is_called_one_and_validates_on_its_share_of_the_test_examples(folder):
    svhn(folder / "svhn", 20, 52)  # of 26,032 test examples 5,000 are for validation
    data = load("svhn")
    assert (len(data.train), len(data.validation), len(data.test)) == (20, 52 * 5000 // 26032, 52 - 9)
    assert data.subset
    assert data.classes == 10
    held_out = torch.cat([data.validation.images, data.test.images])
    assert torch.equal(held_out, as_tensor(pictures(52, 32, 32, 3, seed=1)))
    assert torch.cat([data.validation.labels, data.test.labels]).tolist() == (np.arange(52) % 10).tolist()


def whole(count, *shape):
    return torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(count, *shape), torch.arange(count) % 10


@pytest.mark.parametrize(
    ("name", "files_hold", "counts"),
    [
        ("mnist", (60_000, 10_000), (12_800, None, 10_000)),
        ("mnist-validated", (60_000, 10_000), (12_800, 1_000, 9_000)),
        ("mnist-60000", (60_000, 10_000), (60_000, None, 10_000)),
        ("fashion-mnist", (60_000, 10_000), (12_800, None, 10_000)),
        ("emnist", (112_800, 18_800), (100_000, None, 18_800)),
        ("svhn", (73_257, 26_032), (50_000, 5_000, 21_032)),
        ("cifar10", (50_000, 10_000), (50_000, 1_000, 9_000)),
        ("cifar100", (50_000, 10_000), (50_000, 1_000, 9_000)),
        ("tiny-imagenet", (100_000, 10_000), (100_000, 5_000, 5_000)),
    ],
)
def test_published_splits(name, files_hold, counts, monkeypatch):
    """Appendix B's numbers, out of the numbers that were published; no pixels needed."""

    def decoded(source, size=None):
        names = tuple("0123456789")
        return files.Decoded(whole(files_hold[0], 1, 2, 2), whole(files_hold[1], 1, 2, 2), names, (0.0,), (1.0,))

    monkeypatch.setattr("supple.lab.datasets.decoded", decoded)
    data = load(name)
    assert tuple(part and len(part) for part in (data.train, data.validation, data.test)) == counts
    assert not data.subset
    assert data.train.labels.tolist() == (torch.arange(counts[0]) % 10).tolist()  # the first
    files_hold = files_hold[0] - 1, files_hold[1]
    assert load(name).subset == (counts[0] > files_hold[0])
    files_hold = files_hold[0] + 1, files_hold[1] - 1
    assert load(name).subset


@pytest.mark.parametrize("shuffled", [False, True])
def test_tiny_imagenet_shares_its_labelled_test_images_evenly(folder, shuffled):
    labels, names = np.arange(8).repeat(4), list("abcdefgh")
    if shuffled:
        labels = np.random.default_rng(3).permutation(labels)
    pixels = pictures(32, 64, 64, 3, seed=1)
    write(folder / "tiny_imagenet_part/train-0.parquet", pictures(32, 64, 64, 3), labels, names=names)
    write(folder / "tiny_imagenet_part/test-0.parquet", pixels, labels, names=names)
    data = load("tiny-imagenet")
    for first, part in enumerate((data.validation, data.test)):
        expected = sorted(i for label in range(8) for i in np.flatnonzero(labels == label)[first::2])
        assert torch.equal(part.images, as_tensor(pixels[expected]))
        assert part.labels.tolist() == labels[expected].tolist()


def test_imagenet32_takes_the_first_of_each_class_and_averages_larger_images(folder):
    labels = np.random.default_rng(2).permutation(np.arange(2).repeat([605, 610]))
    small = pictures(len(labels), 4, 4)
    # Each pixel of the large image four times, plus a chequerboard that averages out.
    chequers = np.indices((32, 32)).sum(0) % 2
    large = (small // 2 + 50).repeat(8, 1).repeat(8, 2) + chequers.astype(np.uint8) * 10
    write(folder / "imagenet32/train-0.parquet", large.repeat(2, 1).repeat(2, 2), labels)
    write(folder / "imagenet32/test-0.parquet", large[:300], labels[:300])
    data = load("imagenet32")
    assert data.train.images.shape == (1200, 1, 32, 32)
    kept = np.sort(np.concatenate([np.flatnonzero(labels == label)[:600] for label in (0, 1)]))
    assert data.train.labels.tolist() == labels[kept].tolist()
    assert torch.equal(data.train.images, as_tensor(large[kept]))
    kept = np.sort(np.concatenate([np.flatnonzero(labels[:300] == label)[:100] for label in (0, 1)]))
    halves = [np.sort(np.concatenate([kept[labels[kept] == label][first::2] for label in (0, 1)])) for first in (0, 1)]
    for part, half in zip((data.validation, data.test), halves, strict=True):
        assert torch.equal(part.images, as_tensor(large[half]))
        assert part.labels.bincount().tolist() == [50, 50]
    assert data.subset, "two of ImageNet's 1,000 classes"
    assert load("imagenet32-75").train.labels.bincount().tolist() == [75, 75]


def test_imagenet32_falls_back_to_tiny_imagenet(folder):
    fine = pictures(4, 32, 32, 3) // 2
    coarse = fine.repeat(2, 1).repeat(2, 2)
    coarse[:, ::2, ::2] += 4  # a mean of one more
    for split in ("train", "test"):
        write(folder / f"tiny_imagenet_subset/{split}-0.parquet", coarse, [0, 1, 0, 1])
    assert torch.equal(load("tiny-imagenet").train.images, as_tensor(coarse))
    data = load("imagenet32")
    assert torch.equal(data.train.images, as_tensor(fine + 1))
    assert data.subset


def test_the_whole_set_wins_over_a_subset(folder):
    svhn(folder / "svhn_subset", 10, 10)
    assert len(load("svhn").train) == 10
    svhn(folder / "svhn", 30, 10)
    assert len(load("svhn").train) == 30


# Names.


def test_unknown_names_list_what_there_is():
    with pytest.raises(ValueError, match=r"did you mean 'cifar10'.*known are digits, mnist") as caught:
        load("cifar")
    assert "folder of train-*.parquet or package.module:function" in str(caught.value)


MODULE = """
import torch
from supple.lab.datasets import Dataset, Examples, digits

images = torch.randint(256, (6, 3, 5, 5), dtype=torch.uint8)
labels = torch.tensor([0, 2, 1, 0, 2, 2], dtype=torch.int32)

def tensors(): return images, labels
def dataset(): return digits()
def floats(): return images / 255, labels
def flat(): return images.flatten(1), labels
def fractions(): return images, labels / 2
def short(): return images, labels[:3]
def negative(): return images, labels - 1
def empty(): return images[:0], labels[:0]
def single(): return images
def constant(): return Dataset(digits().train, None, None, 10, (0.,), (0.,))
def lacking(): return Dataset(digits().train, None, None, 10, (0., 0.), (1.,))
def wide(): return Dataset(digits().train, None, Examples(images, labels.long() + 9), 10, (0.,), (1.,))
number = 5
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "their_data.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("their_data", None)


@pytest.mark.usefixtures("module")
def test_any_function_is_a_data_set():
    data = load("their_data:tensors")
    assert data.train.labels.dtype == torch.int64
    assert (data.classes, data.names, data.test) == (3, ("0", "1", "2"), None)
    normalized = data.normalized(data.train.images).transpose(0, 1).flatten(1)
    torch.testing.assert_close(normalized.mean(1), torch.zeros(3), atol=1e-5, rtol=0)
    assert len(load("their_data:dataset").train) == 1797


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("floats", "expected uint8 images .*got torch.float32 .*whole numbers from 0 to 255"),
        ("flat", r"uint8 images \(n, channels, height, width\), got torch.uint8 \(6, 75\)"),
        ("fractions", "6 labels, int64, got torch.float32"),
        ("short", r"6 labels, int64, got torch.int64 \(3,\)"),
        ("negative", "labels from 0 to 1, got -1 to 1 from their_data:negative: number the classes"),
        ("empty", "expected images, got none"),
        ("constant", r"a positive standard deviation for each of 1 channels, got .* 1 will do for a constant channel"),
        ("lacking", r"for each of 1 channels, got \(0.0, 0.0\) and \(1.0,\) from their_data:lacking"),
        ("single", r"expected a Dataset or tensors \(images, labels\) from their_data:single, got Tensor"),
        ("wide", "labels from 0 to 9, got 9 to 11"),
        ("number", "expected a function, got int at 'their_data:number'"),
        ("missing", "expected package.module:function, got 'their_data:missing'"),
    ],
)
def test_functions_that_return_something_else(function, message):
    with pytest.raises(ValueError, match=message):
        load(f"their_data:{function}")


def test_an_unknown_module():
    with pytest.raises(ValueError, match=r"No module named 'not_there'.*PYTHONPATH"):
        load("not_there:data")


# The real ones.


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Loads data sets, decoded into one cache for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUPPLE_CACHE", os.environ.get("SUPPLE_CACHE") or str(tmp_path_factory.mktemp("cache")))
        yield load


REAL = {  # (train, validation, test, classes), and whether that is less than the protocol's
    "mnist": ((12_800, None, 10_000, 10), False),
    "mnist-60000": ((60_000, None, 10_000, 10), False),
    "fashion-mnist": ((12_800, None, 10_000, 10), False),
    "emnist": ((37_600, None, 4_700, 47), True),
    "cifar10": ((50_000, 1_000, 9_000, 10), False),
    "cifar100": ((4_000, 100, 900, 100), True),
    "tiny-imagenet": ((10_000, 1_000, 1_000, 200), True),
    "imagenet32": ((25_000, 1_250, 1_250, 50), True),
}
SHAPES = {"tiny-imagenet": (3, 64, 64)} | dict.fromkeys(("cifar10", "cifar100", "imagenet32"), (3, 32, 32))


def parts(data):
    return [part for part in (data.train, data.validation, data.test) if part]


@needs_real_data
@pytest.mark.parametrize("name", REAL)
def test_real_images_and_labels(name, real):
    data = real(name)
    counts, subset = REAL[name]
    found = tuple(part and len(part) for part in (data.train, data.validation, data.test))
    assert ((*found, data.classes), data.subset) == (counts, subset)
    assert len(data.names) == len(set(data.names)) == data.classes
    for part in parts(data):
        assert part.images.shape == (len(part), *SHAPES.get(name, (1, 28, 28)))
        assert (part.images.dtype, part.labels.dtype) == (torch.uint8, torch.int64)
    assert (data.train.images[:100].amin(), data.train.images[:100].amax()) == (0, 255)
    inputs = data.normalized(data.train.images[:2_000])
    assert inputs.mean().abs() < 0.05
    assert inputs.std() == pytest.approx(1, abs=0.05)


@needs_real_data
@pytest.mark.parametrize(
    ("name", "most_of_a_class_over_least"),
    [
        ("mnist", 1.3),  # as it was collected
        ("fashion-mnist", 1.1),
        ("emnist", 1),
        ("cifar10", 1),
        ("cifar100", 1),
        ("tiny-imagenet", 1),
        ("imagenet32", 1),
    ],
)
def test_real_classes_are_balanced(name, most_of_a_class_over_least, real):
    data = real(name)
    counts = data.train.labels.bincount()
    assert len(counts) == data.classes
    assert counts.max() / counts.min() <= most_of_a_class_over_least
    held_out = [part.labels.bincount(minlength=data.classes) for part in parts(data)[1:]]
    assert sum(held_out).max() / sum(held_out).min() <= {"mnist": 1.3}.get(name, 1)
    if name in ("tiny-imagenet", "imagenet32"):
        assert torch.equal(*held_out)


@needs_real_data
def test_the_published_statistics_of_cifar10(real):
    data = real("cifar10")
    assert data.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=5e-5)
    assert data.std == pytest.approx((0.247, 0.243, 0.262), abs=6e-4)


@needs_real_data
def test_mnist_is_in_its_original_order(real):
    data = real("mnist-60000")
    assert data.train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert data.test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert data.train.labels.bincount().tolist() == counts
    assert (*data.mean, *data.std) == pytest.approx((0.1307, 0.3081), abs=5e-5)  # as published
    assert torch.equal(real("mnist").train.images, data.train.images[:12_800])


@needs_real_data
def test_no_image_is_in_both_the_training_and_the_test_set_of_a_subset_of_its_own(real):
    for name in ("emnist", "imagenet32"):
        data = real(name)
        train = {image.numpy().tobytes() for image in data.train.images}
        assert not sum(image.numpy().tobytes() in train for part in parts(data)[1:] for image in part.images)


def test_importing_costs_little():
    """Heavy packages are imported when files are decoded."""
    code = "import sys, json, supple.lab.datasets, supple.lab.models; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"datasets", "transformers", "sklearn", "PIL", "huggingface_hub", "pandas"} & set(
        json.loads(done.stdout)
    )


@pytest.mark.parametrize(("held_out", "subset"), [(100, False), (99, True)])
def test_imagenet32_without_all_its_held_out_images_is_a_part(held_out, subset, monkeypatch, tmp_path):
    train, test = (
        (torch.zeros(1000 * count, 3, 1, 1, dtype=torch.uint8), torch.arange(1000).repeat(count))
        for count in (2, held_out)
    )
    contents = Decoded(train, test, tuple(map(str, range(1000))), (0.0,) * 3, (1.0,) * 3)
    monkeypatch.setattr(datasets, "local", lambda name: tmp_path)
    monkeypatch.setattr(datasets, "from_folder", lambda folder, size: contents)
    assert datasets.imagenet32(train=2).subset is subset
