"""Means and errors against numbers worked out by hand."""

import math

import polars as pl
import pytest

from supple.runs.stats import by_task, last_tasks


def frame(rows, method="m", strength=1.0, tasks=2):
    """Rows of (seed, task, value)."""
    table = pl.DataFrame(rows, schema={"seed": pl.Int64, "task": pl.Int64, "value": pl.Float64}, orient="row")
    return table.with_columns(
        pl.lit("loss").alias("metric"), method=pl.lit(method), strength=pl.lit(strength), tasks=pl.lit(tasks)
    )


def test_by_task():
    rows = frame([(0, 1, 10.0), (1, 1, 10.0), (2, 1, 13.0), (0, 0, 1.0), (1, 0, 2.0), (2, 0, 3.0)])
    noise = rows.with_columns(metric=pl.lit("other"), value=pl.lit(1e9))
    first, second = by_task(pl.concat([rows, noise]), "loss").to_dicts()
    assert first == {"method": "m", "strength": 1, "task": 0, "mean": 2, "error": 1 / math.sqrt(3), "seeds": 3}
    # Deviations -1, -1 and 2: a variance of 6 / 2, over 3 seeds.
    assert second == {"method": "m", "strength": 1, "task": 1, "mean": 11, "error": pytest.approx(1), "seeds": 3}


def test_methods_and_strengths_apart():
    parts = [
        frame([(0, 0, value)], method, strength)
        for method, strength, value in [("b", 1.0, 5.0), ("a", 1.0, 6.0), ("b", 2.0, 7.0)]
    ]
    found = by_task(pl.concat(parts), "loss")
    assert found.select("method", "strength", "mean").rows() == [("b", 1, 5), ("a", 1, 6), ("b", 2, 7)]
    found = last_tasks(pl.concat(parts), "loss")
    assert found.select("method", "strength", "mean").rows() == [("b", 1, 5), ("a", 1, 6), ("b", 2, 7)]


@pytest.mark.parametrize("function", [by_task, last_tasks])
def test_one_seed_has_no_error(function):
    (row,) = function(frame([(4, 0, 3.0)], tasks=1), "loss").to_dicts()
    assert (row["mean"], row["error"], row["seeds"]) == (3, None, 1)


def test_last_tasks():
    # Seed 0 ends with 3 and 5, seed 1 with 6 and 10: means 4 and 8, a deviation of √8 over √2.
    values = {0: [100.0, 3.0, 5.0], 1: [100.0, 6.0, 10.0]}
    rows = frame([(seed, task, value) for seed in values for task, value in enumerate(values[seed])], tasks=3)
    (row,) = last_tasks(rows, "loss", count=2).to_dicts()
    expected = {"mean": 6, "error": pytest.approx(2), "seeds": 2, "low": 4, "high": 8}
    assert row == {"method": "m", "strength": 1, **expected}


def test_last_tasks_are_five_unless_told():
    (row,) = last_tasks(frame([(0, task, float(task)) for task in range(9)], tasks=9), "loss").to_dicts()
    assert row["mean"] == (4 + 5 + 6 + 7 + 8) / 5


def test_last_tasks_are_each_runs_own():
    short = frame([(0, task, float(task)) for task in range(4)], "short", tasks=4)
    long = frame([(0, task, float(task)) for task in range(10)], "long", tasks=10)
    found = last_tasks(pl.concat([short, long]), "loss", count=2)
    assert dict(found.select("method", "mean").rows()) == {"short": 2.5, "long": 8.5}


def test_a_diverged_seed_is_not_hidden():
    (row,) = last_tasks(frame([(0, 0, 1.0), (1, 0, math.nan)], tasks=1), "loss").to_dicts()
    assert math.isnan(row["mean"])
