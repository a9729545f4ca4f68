"""What files hold, decoded once: from folders, from the hub, and from a cache that may be damaged."""

import gzip
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets as hub
import numpy as np
import pytest
import torch

from supple.lab import files
from supple.lab.datasets import DATASETS, load
from support.pictures import as_tensor, pictures, svhn, write

MAPS = Path("/proc/self/maps")


def test_channel_statistics_by_the_definition():
    images = as_tensor(pictures(1234, 3, 5, 3))  # more than are looked at in one go
    images[:, 2] = 7
    mean, std = files.channel_statistics(images)
    values = images.double().div(255).transpose(0, 1).flatten(1)
    torch.testing.assert_close(torch.tensor(mean, dtype=torch.float64), values.mean(1))
    torch.testing.assert_close(torch.tensor(std[:2], dtype=torch.float64), values[:2].std(1, correction=0))
    assert std[2] == 1  # which is what a constant can be divided by


# Folders.


def test_a_folder_of_parquet_files(tmp_path, cache):
    train, test = pictures(5, 4, 6, 3), pictures(3, 4, 6, 3, seed=1)
    write(tmp_path / "mine/train-00000-of-00002.parquet", train[:2], [2, 0], names=["a", "b", "c"])
    write(tmp_path / "mine/train-00001-of-00002.parquet", train[2:], [1, 1, 0], names=["a", "b", "c"])
    write(tmp_path / "mine/test-00000-of-00001.parquet", test, [0, 1, 2], names=["a", "b", "c"])
    data = load(str(tmp_path / "mine"))
    assert torch.equal(data.train.images, as_tensor(train))
    assert torch.equal(data.test.images, as_tensor(test))
    assert data.train.labels.tolist() == [2, 0, 1, 1, 0]
    assert (data.classes, data.names, data.validation, data.subset) == (3, ("a", "b", "c"), None, False)
    normalized = data.normalized(data.train.images).transpose(0, 1).flatten(1)
    torch.testing.assert_close(normalized.mean(1), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(normalized.std(1, correction=0), torch.ones(3))


def test_grey_images_have_one_channel_unless_some_have_colour(tmp_path, cache):
    grey, colour = pictures(3, 4, 4), pictures(2, 4, 4, 3)
    write(tmp_path / "grey/train-0.parquet", grey, [0, 1, 0])
    data = load(str(tmp_path / "grey"))
    assert torch.equal(data.train.images, as_tensor(grey))
    assert (data.classes, data.test) == (2, None)
    normalized = data.normalized(data.train.images)
    torch.testing.assert_close(normalized.mean(), torch.tensor(0.0))
    torch.testing.assert_close(normalized.std(correction=0), torch.tensor(1.0))
    write(tmp_path / "mixed/train-0.parquet", [*grey, *colour], [0, 1, 0, 1, 2], image="img", label="fine_label")
    write(tmp_path / "mixed/test-0.parquet", grey, [0, 1, 0], image="img", label="fine_label")
    data = load(str(tmp_path / "mixed"))
    repeated = as_tensor(grey).expand(-1, 3, -1, -1)
    assert torch.equal(data.train.images, torch.cat([repeated, as_tensor(colour)]))
    assert torch.equal(data.test.images, repeated)
    assert data.classes == 3


LABELS = [0, 1, 2]


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (None, None, "expected train-.*parquet in .*found none: name the folder"),
        ((pictures(3, 4, 4), LABELS, {"image": "photo"}), None, "column image or img, got photo, label: rename"),
        ((pictures(3, 4, 4), LABELS, {"label": "class"}), None, "column label or fine_label, got image, class: rename"),
        (([*pictures(2, 4, 4), *pictures(1, 4, 5)], LABELS, {}), None, "images of one size, got 4x4 and 4x5 in train"),
        ((pictures(3, 4, 4), LABELS, {}), (pictures(3, 5, 4), LABELS, {}), "got 4x4 in train and 5x4 in test: resize"),
        ((pictures(3, 4, 4), [0, -1, 1], {}), None, "labels from 0 to 1, got -1 to 1 in train: .*number the classes"),
        ((pictures(3, 4, 4), LABELS, {}), (pictures(3, 4, 4), [0, 1, 3], {}), "from 0 to 2, got 0 to 3 in test"),
        (([np.zeros((4, 4), np.uint16)] * 3, LABELS, {}), None, "8 bits a channel, got mode I;16: convert"),
    ],
)
def test_folders_that_are_not_as_they_should_be(tmp_path, cache, train, test, message):
    (tmp_path / "mine").mkdir()
    for split, content in (("train", train), ("test", test)):
        if content:
            write(tmp_path / f"mine/{split}-0.parquet", content[0], content[1], **content[2])
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load(str(tmp_path / "mine"))
    assert not list(cache.rglob("*.pt")), "what failed is not kept"


FEATURES = hub.Features({"image": hub.Image(), "label": hub.Value("int64")})


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("image", None, "expected an image, got none"),
        ("image", {"bytes": b"no picture", "path": None}, "expected an image, got UnidentifiedImageError"),
        ("label", None, "expected a label in each row, got none"),
    ],
)
def test_rows_without_image_or_label_are_named_with_their_file(tmp_path, cache, column, value, message):
    path = tmp_path / "mine/train-1.parquet"
    for name in ("train-0.parquet", "train-1.parquet"):
        write(path.parent / name, pictures(4, 4, 4), [0, 1, 1, 0])
    rows = [dict(row) for row in hub.Dataset.from_parquet(str(path), cache_dir=str(tmp_path))]
    rows[2][column] = value
    hub.Dataset.from_list(rows, features=FEATURES).to_parquet(path)
    with pytest.raises(ValueError, match=rf"^{message}.*row 2 of {path}"):
        load(str(path.parent))


@pytest.mark.parametrize("content", ["empty", "cut"])
def test_files_without_rows_are_named(tmp_path, cache, content):
    write(tmp_path / "mine/train-0.parquet", pictures(4, 4, 4), [0, 1, 1, 0])
    path = tmp_path / "mine/test-0.parquet"
    if content == "empty":
        hub.Dataset.from_dict({"image": [], "label": []}, features=FEATURES).to_parquet(path)
    else:
        path.write_bytes((path.parent / "train-0.parquet").read_bytes()[:300])
    with pytest.raises(ValueError, match=f"^expected a parquet file with rows, got .*{path}"):
        load(str(path.parent))


def test_files_of_other_classes(tmp_path, cache):
    write(tmp_path / "mine/train-0.parquet", pictures(2, 4, 4), [0, 1], names=["a", "b"])
    write(tmp_path / "mine/train-1.parquet", pictures(2, 4, 4), [0, 1], names=["b", "a"])
    with pytest.raises(ValueError, match="expected files with the same classes, got"):
        load(str(tmp_path / "mine"))


def test_labels_that_are_no_integers(tmp_path, cache):
    write(tmp_path / "mine/train-0.parquet", pictures(2, 4, 4), [0, 1])
    table = hub.Dataset.from_parquet(str(tmp_path / "mine/train-0.parquet"), cache_dir=str(tmp_path))
    table.cast_column("label", hub.Value("string")).to_parquet(tmp_path / "mine/train-0.parquet")
    with pytest.raises(ValueError, match=r"integers in column label, got .*number the classes from 0"):
        load(str(tmp_path / "mine"))


# The hub, without a network.


@pytest.fixture
def no_network(monkeypatch):
    """Whatever is asked for, it is not there; says what was asked for."""
    asked = []

    def snapshot_download(*arguments, **options):
        asked.append((arguments, options))
        raise ConnectionError("Name or service not known\nand more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return asked


@pytest.mark.parametrize("name", [name for name in DATASETS if not name.startswith("digits")])
def test_no_folder_and_no_network_is_one_sentence(name, cache, no_network):
    with pytest.raises(FileNotFoundError) as caught:
        load(name)
    message = str(caught.value)
    assert "\n" not in message
    for part in ("from the Hugging Face hub", "connect to the network once", "set SUPPLE_DATA to a folder with"):
        assert part in message
    (((hub_name,), options),) = no_network
    assert hub_name in message
    assert options["repo_type"] == "dataset"
    assert (options["revision"] is None) == (name.partition("-")[0] in ("emnist", "svhn"))


def test_a_subset_of_cifar100_is_none_of_cifar10(folder, no_network):
    write(folder / "cifar100_subset/train-0.parquet", pictures(2, 4, 4), [0, 1])
    with pytest.raises(FileNotFoundError, match="cifar10/train"):
        load("cifar10")


def test_a_folder_that_is_not_there(cache, monkeypatch):
    monkeypatch.setenv("SUPPLE_DATA", "/nowhere")
    with pytest.raises(FileNotFoundError, match="SUPPLE_DATA to name a folder, got '/nowhere'"):
        load("mnist")


def test_from_the_hub_the_files_of_one_folder_are_taken_and_asked_for_once(tmp_path, cache, monkeypatch):
    svhn(tmp_path / "snapshot/cropped_digits", 20, 30)
    svhn(tmp_path / "snapshot/full_numbers", 5, 5)
    asked = []

    def snapshot_download(name, *, repo_type, revision, allow_patterns):
        asked.append((name, allow_patterns))
        return str(tmp_path / "snapshot")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    for _ in range(2):
        assert len(load("svhn").train) == 20
    assert asked == [("ufldl-stanford/svhn", ["cropped_digits/train-*", "cropped_digits/test-*"])]


def test_emnist_as_its_authors_published_it(tmp_path, cache, monkeypatch):
    """Big-endian headers, rows and columns exchanged, class codes in a text file."""
    upright = {"train": pictures(6, 28, 28), "test": pictures(4, 28, 28, seed=1)}
    for split, images in upright.items():
        kinds = {
            "images-idx3": np.array([0x803, len(images), 28, 28], ">i4").tobytes()
            + images.transpose(0, 2, 1).tobytes(),
            "labels-idx1": np.array([0x801, len(images)], ">i4").tobytes() + bytes(range(len(images))),
        }
        for kind, content in kinds.items():
            (tmp_path / f"emnist-balanced-{split}-{kind}-ubyte.gz").write_bytes(gzip.compress(content))
    (tmp_path / "emnist-balanced-mapping.txt").write_text("0 48\n1 49\n2 65\n3 97\n4 98\n5 116\n")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
    data = load("emnist")
    assert torch.equal(data.train.images, as_tensor(upright["train"]))
    assert torch.equal(data.test.images, as_tensor(upright["test"]))
    assert data.train.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert data.names == ("0", "1", "A", "a", "b", "t")
    assert data.subset


# The cache.


@pytest.fixture
def decodings(monkeypatch):
    """Counts how often files are decoded."""
    count = []
    decode = files._decode
    monkeypatch.setattr(files, "_decode", lambda *args, **options: count.append(1) or decode(*args, **options))
    return count


def test_decoded_once(tmp_path, cache, decodings, capfd):
    write(tmp_path / "mine/train-0.parquet", pictures(9, 4, 4), [0, 1, 2] * 3)
    hub.enable_progress_bars()
    first, second = (load(str(tmp_path / "mine")) for _ in range(2))
    assert len(decodings) == 1
    assert torch.equal(first.train.images, second.train.images)
    assert {path.suffix or path.name for path in cache.iterdir()} == {".pt", ".lock"}, "nothing else is left behind"
    assert capfd.readouterr() == ("", f"decoding mine into {cache}, once\n")
    second.train.images.zero_()  # in this process alone
    assert torch.equal(load(str(tmp_path / "mine")).train.images, as_tensor(pictures(9, 4, 4)))


def test_two_who_need_the_same_decode_it_once(tmp_path, cache, decodings):
    write(tmp_path / "mine/train-0.parquet", pictures(9, 4, 4), [0, 1, 2] * 3)
    with ThreadPoolExecutor() as both:
        found = list(both.map(load, [str(tmp_path / "mine")] * 2))
    assert len(decodings) == 1
    assert torch.equal(found[0].train.images, found[1].train.images)


def test_what_a_killed_process_left_is_cleared_away(tmp_path, cache):
    write(tmp_path / "mine/train-0.parquet", pictures(3, 4, 4), [0, 1, 2])
    left = cache / ".decoding/train/half"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    assert len(load(str(tmp_path / "mine")).train) == 3
    assert not left.parent.exists()


@pytest.mark.skipif(not MAPS.exists(), reason="the system does not say what is mapped")
def test_what_is_loaded_is_mapped_and_not_copied(tmp_path, cache):
    write(tmp_path / "mine/train-0.parquet", pictures(9, 4, 4), [0, 1, 2] * 3)
    data = load(str(tmp_path / "mine"))
    (path,) = cache.glob("*.pt")
    assert str(path) in MAPS.read_text()
    del data


def test_changed_files_are_decoded_again(tmp_path, cache, decodings):
    path = tmp_path / "mine/train-0.parquet"
    write(path, pictures(3, 4, 4), [0, 1, 2])
    load(str(path.parent))
    write(path, pictures(3, 4, 4, seed=1), [0, 1, 2])
    assert torch.equal(load(str(path.parent)).train.images, as_tensor(pictures(3, 4, 4, seed=1)))
    assert len(decodings) == 2


@pytest.mark.parametrize("damage", ["empty", "half", "other", "dictionary"])
def test_a_damaged_cache_is_made_again(tmp_path, cache, decodings, damage):
    write(tmp_path / "mine/train-0.parquet", pictures(50, 16, 16), [0, 1] * 25)
    load(str(tmp_path / "mine"))
    (path,) = cache.glob("*.pt")
    content = path.read_bytes()
    path.unlink()  # mapped by what was loaded
    if damage == "dictionary":
        torch.save({"train": 1}, path)
    else:
        path.write_bytes({"empty": b"", "half": content[: len(content) // 2], "other": b"parquet"}[damage])
    assert torch.equal(load(str(tmp_path / "mine")).train.images, as_tensor(pictures(50, 16, 16)))
    assert len(decodings) == 2
    load(str(tmp_path / "mine"))
    assert len(decodings) == 2


def test_an_interrupted_decoding_leaves_nothing(tmp_path, cache, monkeypatch):
    write(tmp_path / "mine/train-0.parquet", pictures(3, 4, 4), [0, 1, 2])

    def full(_, path):
        path.write_bytes(b"half")
        raise RuntimeError("unexpected pos 576 vs 534")  # torch's words for a full disk

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OSError, match=f"expected room for mine in {cache}"):
            load(str(tmp_path / "mine"))
    assert [path.name for path in cache.iterdir()] == [".lock"]
    assert len(load(str(tmp_path / "mine")).train) == 3


def test_the_caches_place(tmp_path, monkeypatch, cache):
    write(tmp_path / "mine/train-0.parquet", pictures(3, 4, 4), [0, 1, 2])
    monkeypatch.delenv("SUPPLE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    load(str(tmp_path / "mine"))
    assert len(list((tmp_path / "xdg/supple").glob("mine-*.pt"))) == 1
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    load(str(tmp_path / "mine"))
    assert len(list((tmp_path / "home/.cache/supple").glob("mine-*.pt"))) == 1
