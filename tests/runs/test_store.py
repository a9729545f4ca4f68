"""Runs on disk: names by content, files whole or absent, and all of them read back together."""

import json
from pathlib import Path

import polars as pl
import pytest
import torch

from supple.runs.store import RunFolder, environment, load

CONFIG = {"problem": "p", "method": "m", "strength": 0.5, "seeds": (0, 1), "tasks": 2, "model": "mlp"}
ROWS = [(seed, task, "loss", seed + task / 4) for task in (0, 1) for seed in (0, 1)]
FILES = ("run.json", "environment.json", "metrics.parquet", "checkpoint.pt")


def saved(root, rows=ROWS, **changes):
    folder = RunFolder(root, CONFIG | changes)
    begin_and_save(folder, {"value": torch.arange(3)}, rows)
    return folder


@pytest.mark.parametrize(
    "change", [{"strength": 0.25}, {"seeds": (0, 2)}, {"seeds": (1, 0)}, {"tasks": 3}, {"model": "mlp2"}, {"new": 0}]
)
def test_every_value_counts_in_the_name(change, tmp_path):
    assert RunFolder(tmp_path, CONFIG | change).path != RunFolder(tmp_path, CONFIG).path


def test_the_order_of_keys_does_not_count(tmp_path):
    backwards = dict(reversed(CONFIG.items()))
    assert RunFolder(tmp_path, backwards).path == RunFolder(tmp_path, CONFIG).path


def test_names_never_change(tmp_path):
    path = RunFolder(tmp_path, CONFIG).path
    assert path.parent == tmp_path
    assert path.name == "p-m-425c8cf89b1b"  # or no run that is on disk would be found again


def test_what_is_saved_comes_back(tmp_path):
    folder = RunFolder(tmp_path / "not" / "there" / "yet", CONFIG)
    assert folder.begin(machine="mine") is None
    assert not folder.finished(2)
    folder.save({"value": torch.arange(3)}, ROWS)
    checkpoint = folder.begin()
    assert torch.equal(checkpoint["value"], torch.arange(3))
    assert [tuple(row) for row in checkpoint["rows"]] == ROWS
    assert pl.read_parquet(folder.path / "metrics.parquet").rows() == ROWS
    assert json.loads((folder.path / "run.json").read_text()) == CONFIG | {"seeds": [0, 1]}
    assert sorted(path.name for path in folder.path.iterdir()) == sorted(FILES)


def test_the_environment_is_written_down(tmp_path):
    folder = RunFolder(tmp_path, CONFIG)
    folder.begin(machine="mine")
    written = json.loads((folder.path / "environment.json").read_text())
    assert written == environment() | {"machine": "mine"}
    assert written["torch"] == torch.__version__
    assert written["threads"] == torch.get_num_threads()


@pytest.mark.parametrize(("tasks", "finished"), [(1, False), (2, True), (3, False)])
def test_a_run_is_finished_when_every_task_is_measured(tasks, finished, tmp_path):
    assert saved(tmp_path).finished(tasks) is finished


def half_written(*arguments, **options):
    """Any writer that is killed in the middle."""
    path = next(argument for argument in arguments if isinstance(argument, Path))
    path.write_bytes(b"half")
    raise KeyboardInterrupt


def begin_and_save(folder, checkpoint, rows):
    folder.begin()
    folder.save(checkpoint, rows)


@pytest.mark.parametrize("before", ["absent", "there"])
@pytest.mark.parametrize(
    ("owner", "write", "name"),
    [
        (Path, "write_text", "run.json"),
        (torch, "save", "checkpoint.pt"),
        (pl.DataFrame, "write_parquet", "metrics.parquet"),
    ],
    ids=["text", "checkpoint", "metrics"],
)
def test_files_are_whole_or_as_they_were(before, owner, write, name, tmp_path, monkeypatch):
    folder = saved(tmp_path) if before == "there" else RunFolder(tmp_path, CONFIG)
    if before == "absent" and name != "run.json":
        folder.begin()
    path = folder.path / name
    content = path.read_bytes() if path.exists() else None
    with monkeypatch.context() as patch:
        patch.setattr(owner, write, half_written)
        with pytest.raises(KeyboardInterrupt):
            begin_and_save(folder, {}, ROWS)
    assert (path.read_bytes() if path.exists() else None) == content
    begin_and_save(folder, {"value": 1}, ROWS)  # and it goes on from there
    assert folder.finished(2)
    assert load(tmp_path).height == len(ROWS)


def test_load_puts_the_configuration_beside_each_row(tmp_path):
    first, second = saved(tmp_path), saved(tmp_path, ROWS[:2], strength=1.5, tasks=1, width=64)
    (tmp_path / "chart.svg").touch()
    RunFolder(tmp_path, CONFIG | {"strength": 9.0}).begin()  # nothing measured yet
    rows = load(tmp_path)
    assert "seeds" not in rows.columns
    by_run = {name: rows.filter(pl.col("run") == name) for name in rows["run"].unique()}
    assert by_run.keys() == {first.path.name, second.path.name}
    for folder, measured, expected in [
        (first, ROWS, ("p", "m", 0.5, 2, "mlp", None)),
        (second, ROWS[:2], ("p", "m", 1.5, 1, "mlp", 64)),
    ]:
        found = by_run[folder.path.name]
        assert found.select("seed", "task", "metric", "value").rows() == measured
        assert set(found.select("problem", "method", "strength", "tasks", "model", "width").rows()) == {expected}


def test_nothing_to_load(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected runs in .*, found none: make some with `supple run`"):
        load(tmp_path)
