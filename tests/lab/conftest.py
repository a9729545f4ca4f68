"""Where data sets are looked for and kept."""

import pytest


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and no data anywhere."""
    monkeypatch.setenv("SUPPLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SUPPLE_DATA", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path, cache, monkeypatch):
    """An empty folder of data sets."""
    monkeypatch.setenv("SUPPLE_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"
