"""Compiled code that a killed process left half-written is built again; a machine that can't build any is found."""

import ctypes

import pytest
import torch

from supple.training.compiled_code import can_compile, retry_without_damaged_code


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Torch's cache of compiled code."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def loads(*files):
    """Work that builds the files that are missing, as torch does, and loads all."""

    def work(result):
        for file in files:
            if file.exists():
                ctypes.CDLL(str(file))
        return result

    return retry_without_damaged_code(work)


@pytest.mark.parametrize("content", [b"", b"half of a library" * 100])
def test_what_cannot_be_loaded_is_removed_and_the_work_begins_again(content, cache):
    files = [cache / "ab" / f"{name}.main.so" for name in ("first", "second")]
    files[0].parent.mkdir()
    for file in files:
        file.write_bytes(content)
    assert loads(*files)(result=3) == 3
    assert not any(file.exists() for file in files)


def test_what_stays_damaged_is_an_error(cache):
    file = cache / "again.so"

    @retry_without_damaged_code
    def work():
        file.write_bytes(b"")
        ctypes.CDLL(str(file))

    with pytest.raises(OSError, match=r"again\.so"):
        work()


def test_other_files_and_other_errors_are_left_alone(cache, tmp_path):
    own = tmp_path / "own.so"
    own.write_bytes(b"")
    with pytest.raises(OSError, match=r"own\.so"):
        loads(own)(0)
    assert own.exists()
    with pytest.raises(ZeroDivisionError):
        retry_without_damaged_code(lambda: 1 / 0)()


def test_a_machine_that_cannot_compile_is_found(monkeypatch):
    def fails(work):
        def call(*args):
            raise RuntimeError("no C++ compiler")

        return call

    monkeypatch.setattr(torch, "compile", lambda work: work)
    assert can_compile("cpu")
    monkeypatch.setattr(torch, "compile", fails)
    assert not can_compile("cpu")
