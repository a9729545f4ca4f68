"""Means and errors against numbers worked out by hand."""

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from supple.runs.stats import (
    bootstrap_interval,
    by_task,
    interquartile_mean,
    last_count,
    last_tasks,
    note_on_diverged,
    over_tasks,
)


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
    setting = {"method": "m", "strength": 1, "tasks": 2}
    assert first == setting | {"task": 0, "mean": 2, "error": 1 / math.sqrt(3), "seeds": 3}
    # Deviations -1, -1 and 2: a variance of 6 / 2, over 3 seeds.
    assert second == setting | {"task": 1, "mean": 11, "error": pytest.approx(1), "seeds": 3}


def test_methods_and_strengths_apart():
    parts = [
        frame([(0, 0, value)], method, strength, tasks=1)
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
    expected = {"mean": 6, "error": pytest.approx(2), "seeds": 2, "iqm": 6, "low": None, "high": None, "diverged": None}
    assert row == {"method": "m", "strength": 1, "tasks": 3, **expected}


def test_over_tasks():
    # Seed 0 has a mean of 2 over its tasks, seed 1 of 6.
    rows = pl.concat(
        [
            frame([(0, 0, 1.0), (0, 1, 3.0), (1, 0, 5.0), (1, 1, 7.0)], strength=strength).with_columns(
                value=pl.col("value") * strength
            )
            for strength in (2.0, 1.0)
        ]
    )
    found = over_tasks(rows, "loss").select("strength", "mean", "error", "seeds").rows()
    assert found == [(1, 4, pytest.approx(2), 2), (2, 8, pytest.approx(4), 2)]


def test_diverged_members_are_counted_at_the_end():
    rows = frame([(seed, task, 1.0) for seed in range(3) for task in range(2)])
    diverged = frame([(0, 0, 1.0), (0, 1, 1.0), (1, 0, 0.0), (1, 1, 1.0), (2, 0, 0.0), (2, 1, 0.0)])
    diverged = diverged.with_columns(metric=pl.lit("diverged"))
    (row,) = last_tasks(pl.concat([rows, diverged]), "loss").to_dicts()
    assert (row["seeds"], row["diverged"]) == (3, 2)


def test_a_seed_that_was_trained_twice_counts_once():
    """As where the same networks ran with other diagnostics, of which no column tells."""
    rows = frame([(seed, task, 1.0 + 2 * seed) for seed in range(2) for task in range(2)])
    rows = pl.concat([rows, rows.with_columns(metric=pl.lit("diverged"), value=1.0)])
    twice = pl.concat([rows, rows])
    for function in (by_task, over_tasks, last_tasks):
        assert function(twice, "loss").equals(function(rows, "loss"))
    assert by_task(twice, "loss").select("mean", "error", "seeds").row(0) == (2, pytest.approx(1), 2)
    assert last_tasks(twice, "loss")["diverged"].to_list() == [2]


def test_settings_with_nothing_in_them_are_settings():
    rows = pl.concat([frame([(0, 0, 1.0)], method, tasks=1) for method in "ab"]).with_columns(
        examples=pl.lit(None, pl.Int64)
    )
    diverged = rows.with_columns(metric=pl.lit("diverged"))
    assert last_tasks(pl.concat([rows, diverged]), "loss")["diverged"].to_list() == [1, 1]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30))
def test_the_interquartile_mean_leaves_out_a_quarter_at_either_end(values):
    quarter = len(values) // 4
    middle = sorted(values)[quarter : len(values) - quarter]
    assert interquartile_mean(np.array(values)) == pytest.approx(math.fsum(middle) / len(middle), abs=1e-6)


def test_the_interval_by_the_binomial_distribution():
    # Of ones and zeros, ten in all, half each: the mean of the middle six of ten that are drawn again is known by how
    # many of them are ones, which is binomial.
    values = np.array([0.0, 1.0] * 5)
    of_ones = {ones: np.clip(ones - 2, 0, 6) / 6 for ones in range(11)}
    chances = {ones: binom.pmf(ones, 10, 0.5) for ones in of_ones}
    quantiles = []
    for share in (0.025, 0.975):
        ordered, total = sorted(of_ones, key=of_ones.get), 0.0
        for ones in ordered:
            total += chances[ones]
            if total >= share:
                quantiles.append(of_ones[ones])
                break
    assert bootstrap_interval([values]) == pytest.approx(quantiles)


def test_the_interval_by_drawing_oneself():
    rng = np.random.default_rng(5)
    strata = [rng.normal(size=9), 3 + rng.normal(size=6)]
    means = []
    for _ in range(20_000):
        drawn = np.sort(np.concatenate([rng.choice(values, len(values)) for values in strata]))
        means.append(drawn[3:-3].mean())  # a quarter of 15, rounded down
    expected, spread = np.quantile(means, [0.025, 0.975]), np.std(means)
    assert np.abs(np.array(bootstrap_interval(strata)) - expected).max() < 0.15 * spread


def test_the_interval_is_the_same_each_time_and_listens_to_its_seed():
    values = np.random.default_rng(3).normal(size=8)
    assert bootstrap_interval([values]) == bootstrap_interval([values])
    assert bootstrap_interval([values], seed=1) != bootstrap_interval([values])
    assert bootstrap_interval([np.array([2.5])]) == [2.5, 2.5]


def test_last_tasks_are_five_unless_told():
    (row,) = last_tasks(frame([(0, task, float(task)) for task in range(9)], tasks=9), "loss").to_dicts()
    assert row["mean"] == (4 + 5 + 6 + 7 + 8) / 5


def test_last_tasks_are_each_runs_own():
    short = frame([(0, task, float(task)) for task in range(4)], "short", tasks=4)
    long = frame([(0, task, float(task)) for task in range(10)], "long", tasks=10)
    found = last_tasks(pl.concat([short, long]), "loss", count=2)
    assert dict(found.select("method", "mean").rows()) == {"short": 2.5, "long": 8.5}


def test_a_diverged_seed_is_not_hidden():
    seeds = [(seed, 0, math.nan if seed == 1 else 1.0) for seed in range(4)]
    (row,) = last_tasks(frame(seeds, tasks=1), "loss").to_dicts()
    assert math.isnan(row["mean"])
    assert math.isnan(row["high"])


@pytest.mark.parametrize(("tasks", "most", "count"), [(1, 5, 1), (2, 5, 1), (3, 5, 2), (10, 5, 5), (10, 1, 1)])
def test_the_first_task_is_not_among_the_last(tasks, most, count):
    assert last_count(tasks, most) == count
    values = [float(task) for task in range(tasks)]
    rows = frame([(0, task, value) for task, value in enumerate(values)], tasks=tasks)
    (row,) = last_tasks(rows, "loss", most).to_dicts()
    assert row["mean"] == sum(values[-count:]) / count


def test_who_diverged_in_the_last_of_three_tasks_counts_whole():
    rows = frame([(0, task, 1.0) for task in range(3)], tasks=3)
    diverged = frame([(0, 0, 0.0), (0, 1, 0.0), (0, 2, 1.0)], tasks=3).with_columns(metric=pl.lit("diverged"))
    assert last_tasks(pl.concat([rows, diverged]), "loss")["diverged"].to_list() == [1]


def test_diverged_agents_of_one_run_are_counted_each():
    rows = pl.DataFrame({"run": ["a", "a"], "member": [0, 1], "metric": ["diverged"] * 2, "value": [1.0, 1.0]})
    assert note_on_diverged(rows, "return").startswith("2 agents have")


def test_each_problem_is_drawn_by_itself():
    """What rises in one stratum where it falls in the other would always cancel if both had the same draws."""
    values = np.arange(8.0)
    low, high = bootstrap_interval([values, 7 - values])
    assert low < 3.2 < 3.8 < high
