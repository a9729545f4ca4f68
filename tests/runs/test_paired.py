"""Comparisons seed by seed, and the ranking, against numbers worked out by hand and by scipy."""

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from supple.runs.stats import paired, ranking


def frame(values, method="m", tasks=1):
    """Of {seed: values over tasks}."""
    rows = [
        (f"{method}{seed}", 0, seed, task, "loss", float(value), method, tasks)
        for seed, curve in values.items()
        for task, value in enumerate(curve)
    ]
    names = ["run", "member", "seed", "task", "metric", "value", "method", "tasks"]
    return pl.DataFrame(rows, schema=names, orient="row")


def test_by_hand():
    mine, theirs = (
        frame({0: [9, 4, 6], 1: [9, 2, 2], 2: [0, 0, 0]}, tasks=3),
        frame({0: [7, 0, 3], 1: [7, 0, 4]}, tasks=3),
    )
    (found,) = paired(mine, theirs, "loss", 2).to_dicts()
    # 5 - 1.5 and 2 - 2: a mean of 1.75 and a deviation of 3.5/√2, which over √2 is 1.75; t₁(0.975) = 12.7062.
    half = 12.7062 * 1.75
    assert found == {
        "method": "m",
        "tasks": 3,
        "difference": 1.75,
        "wins": 1,
        "pairs": 2,
        "low": pytest.approx(1.75 - half, rel=1e-5),
        "high": pytest.approx(1.75 + half, rel=1e-5),
    }


def test_all_tasks_count_if_no_number_is_given():
    rows = {0: [9, 4, 5], 1: [9, 2, 4]}, {0: [7, 0, 2], 1: [7, 0, 5]}
    (found,) = paired(*(frame(values, tasks=3) for values in rows), "loss", None).to_dicts()
    assert (found["difference"], found["wins"]) == (2, 2)  # 6 - 3 and 5 - 4


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=2, max_size=8))
def test_the_interval_is_that_of_the_paired_t_test(pairs):
    mine, theirs = zip(*pairs, strict=True)
    differences = np.subtract(mine, theirs)
    if np.std(differences) < 1e-6:
        return
    found = paired(frame({s: [v] for s, v in enumerate(mine)}), frame({s: [v] for s, v in enumerate(theirs)}), "loss")
    expected = ttest_rel(mine, theirs).confidence_interval(0.95)
    assert found.select("low", "high").row(0) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert found["wins"].to_list() == [(differences > 0).sum()]


def test_one_pair_has_no_interval():
    (found,) = paired(frame({0: [3]}), frame({0: [1], 1: [2]}), "loss").to_dicts()
    assert (found["difference"], found["low"], found["high"], found["pairs"]) == (2, None, None, 1)


def test_without_a_common_seed_there_is_nothing():
    assert paired(frame({0: [3]}), frame({1: [1]}), "loss").is_empty()


def test_what_is_no_number_wins_against_nothing():
    rows, reference = frame({0: [math.nan], 1: [2], 2: [3]}), frame({0: [1], 1: [math.nan], 2: [1]})
    (found,) = paired(rows, reference, "loss").to_dicts()
    assert (found["wins"], found["pairs"]) == (1, 3)
    assert math.isnan(found["difference"])


def test_methods_apart_and_in_order():
    rows = pl.concat([frame({0: [3]}, "b"), frame({0: [4]}, "a")])
    assert paired(rows, frame({0: [1]}), "loss").select("method", "difference").rows() == [("b", 2), ("a", 3)]


@pytest.mark.parametrize(
    ("metric", "expected"), [("accuracy", [("c", 5), ("a", 1)]), ("train_loss", [("a", 1), ("c", 5)])]
)
def test_the_best_is_first_and_what_is_no_number_last(metric, expected):
    curves = {"a": [1, 2], "b": [7, math.nan], "c": [5, 9]}
    rows = pl.concat([frame({0: curve}, method, tasks=2) for method, curve in curves.items()])
    found = ranking(rows.with_columns(metric=pl.lit(metric)), metric, 1).select("method", "first").rows()
    assert found == [*expected, ("b", 7)]
