"""TensorBoard events, read back."""

import pytest

from supple import cli
from supple.lab.run import Run
from supple.runs.store import load
from supple.runs.tensorboard import mirror
from support.events import scalars
from support.stores import plausible, store

METRICS = ("train_accuracy", "spectral_norm")


@pytest.fixture
def rows(tmp_path):
    runs = [Run.of("random-label-digits", method, (0, 1), tasks=3) for method in ("none", "l2")]
    store(tmp_path / "runs", runs, METRICS, plausible)
    return load(tmp_path / "runs")


def read(folder):
    """Events by run, metric and task."""
    return sorted(
        (path.relative_to(folder).as_posix(), *scalar) for path in folder.glob("*/*") for scalar in scalars(path)
    )


def test_every_row_is_an_event_and_again_changes_nothing(rows, tmp_path):
    expected = sorted(
        (f"{row['run']}/{row['member']}-seed-{row['seed']}", row["metric"], row["task"], pytest.approx(row["value"]))
        for row in rows.to_dicts()
    )
    assert len(expected) == 2 * 2 * 3 * len(METRICS)
    for _ in range(2):
        mirror(rows, tmp_path / "events")
        assert read(tmp_path / "events") == expected


def test_without_tensorboard_it_says_what_to_do(rows, tmp_path, monkeypatch):
    monkeypatch.setattr("supple.runs.tensorboard.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="expected the package tensorboard, got none: pip install"):
        mirror(rows, tmp_path / "events")


def test_the_command_mirrors_what_it_shows(rows, tmp_path, monkeypatch):
    events = str(tmp_path / "events")
    command = cli.RunCommand(
        problem="random-label-digits",
        method="l2",
        tasks=3,
        seeds=1,
        first_seed=1,
        out=str(tmp_path / "runs"),
        tensorboard=events,
    )
    found = command.train(command.members())  # all of it is there
    assert found["seed"].unique().to_list() == [1]
    assert [name for name, *_ in read(tmp_path / "events")] == [f"{found['run'][0]}/1-seed-1"] * 3 * len(METRICS)
    monkeypatch.setattr("supple.runs.tensorboard.find_spec", lambda name: None)
    monkeypatch.setattr("supple.lab.grid.missing", lambda *arguments: pytest.fail("it was told too late"))
    with pytest.raises(ValueError, match="tensorboard"):
        command.train(command.members())
