"""What the page says of the numbers: rankings, references, runs that are not at their end, long runs."""

import json
import math

import polars as pl
import pytest

from supple.report.drawings import Drawings, _packed
from supple.report.standings import at_furthest_task, averaged, reported, standings
from supple.runs.lines import Lines, lines_over_tasks


def rows_of(values, *, tasks, metric="train_accuracy"):
    """Of {(method, strength, seed): values over tasks}, each a run of its own."""
    rows = [
        (f"{method}-{strength}-{seed}", 0, seed, task, metric, float(value), method, "{}", strength, 1e-3, tasks)
        for (method, strength, seed), curve in values.items()
        for task, value in enumerate(curve)
    ]
    names = ["run", "member", "seed", "task", "metric", "value", "method", "options", "strength", "step_size", "tasks"]
    return pl.DataFrame(rows, schema=names, orient="row")


def stand(values, tasks):
    return standings(rows_of(values, tasks=tasks), Drawings(["a", "b", "none"]))


def test_each_method_stands_at_its_best_strength():
    found = stand(
        {
            ("a", 0.1, 0): [0.0, 0.5],
            ("a", 0.2, 0): [0.9, 0.1],
            ("b", 0.1, 0): [0.0, 0.7],
            ("b", 0.2, 0): [0.0, math.nan],
            ("none", 0.0, 0): [0.1, 0.2],
        },
        tasks=2,
    )
    (headline,) = found.headlines
    assert [(row["method"], row["strength"], row["mean"]) for row in headline.ranking] == [
        ("b", 0.1, 0.7),  # the first task does not count
        ("a", 0.1, 0.5),
        ("none", 0.0, 0.2),
    ]
    assert (found.columns, found.chosen_by, found.methods) == (["strength"], "train_accuracy", ["b", "a", "none"])
    assert headline.sensitivity is not None


def test_agents_are_drawn_over_the_steps_of_their_environment():
    drawings = Drawings(["a"])
    found = standings(rows_of({("a", 0.1, 0): [3, 4, 5]}, tasks=3), drawings, (100, 250))
    assert found.unit == "evaluation"
    assert json.loads(drawings.text())["charts"][0]["columns"]["step"] == [100, 200, 250]


def test_charts_share_instructions_only_where_their_dashes_mean_the_same(monkeypatch):
    chart, built = Lines.chart, []
    monkeypatch.setattr(Lines, "chart", lambda lines: built.append(lines) or chart(lines))
    curves = {("a", 0.1, 0): [1], ("a", 0.2, 0): [2], ("b", 0.2, 0): [3]}
    both = rows_of(curves, tasks=1).with_columns(
        options=pl.when(pl.col("strength") == 0.1).then(pl.lit("x")).otherwise(pl.lit("y"))
    )
    options = both.with_columns(strength=pl.when(pl.col("method") == "a").then(0.2).otherwise(0.1))
    drawings = Drawings(["a", "b"])
    for rows in (both, options, both):
        drawings.add(lines_over_tasks(rows, "train_accuracy"), "")
    page = json.loads(drawings.text())
    titles = [
        page["specs"][chart["spec"]]["layer"][1]["encoding"]["strokeDash"]["condition"]["title"]
        for chart in page["charts"]
    ]
    assert titles == ["options · strength", "options", "options · strength"]
    assert len(page["specs"]) == len(built) == 2, "Altair takes a hundred times as long as what else a chart needs"
    drawings.add(lines_over_tasks(both.with_columns(options=pl.col("options") + "2"), "train_accuracy"), "")
    assert len(built) == 3, "the legend names the values"


def test_nothing_was_chosen_where_each_method_ran_once():
    found = stand({("a", 0.1, 0): [1], ("none", 0.0, 0): [0]}, tasks=1)
    assert found.chosen_by is None
    assert found.headlines[0].sensitivity is None


def test_a_metric_that_tuning_did_not_measure_has_no_chart_against_strength():
    curves = {("a", strength, seed): [1] for strength, seed in ((0.1, 1000), (0.2, 1000), (0.2, 0))}
    rows = rows_of(curves, tasks=1)
    tuned = pl.when(pl.col("seed") == 1000).then(pl.lit("test_accuracy")).otherwise("metric").alias("metric")
    (headline,) = standings(rows.with_columns(tuned), Drawings(["a"])).headlines
    assert headline.sensitivity is None


def test_differences_from_the_best_and_from_none():
    curves = {("a", 1.0, 0): [5], ("a", 1.0, 1): [9], ("b", 1.0, 0): [4], ("b", 1.0, 1): [5]}
    found = stand(curves | {("none", 0.0, 0): [1], ("none", 0.0, 1): [2]}, tasks=1).headlines[0]
    against = {
        name: [row and (row["difference"], row["wins"], row["pairs"]) for row in rows]
        for name, rows in found.against.items()
    }
    assert against == {
        "a": [None, (-2.5, 0, 2), (-5.5, 0, 2)],
        "none": [(5.5, 2, 2), (3.0, 2, 2), None],
    }


def test_where_none_is_best_there_is_one_comparison():
    found = stand({("a", 1.0, 0): [1], ("none", 0.0, 0): [2]}, tasks=1).headlines[0]
    assert found.against.keys() == {"none"}


def test_of_each_setting_those_that_are_furthest_count():
    rows = rows_of({("a", 1.0, 0): [1, 2, 3], ("a", 1.0, 1): [1], ("b", 1.0, 0): [7]}, tasks=5)
    found = at_furthest_task(rows)
    assert found.select("run", "tasks").unique(maintain_order=True).rows() == [("a-1.0-0", 3), ("b-1.0-0", 1)]
    (headline,) = standings(rows, Drawings(["a", "b"])).headlines
    assert headline.some_lag
    assert [row["method"] for row in headline.ranking] == ["b", "a"]
    assert headline.against == {"a": [None, None]}  # the best of the furthest; they are not equally far


def test_a_setting_that_has_just_begun_hides_none_that_is_further():
    """Early tasks are the easier ones, for a network that loses its plasticity."""
    curves = {("a", 0.1, 0): [9, 6, 5], ("a", 0.2, 0): [9, 4, 4], ("a", 0.3, 0): [9], ("none", 0.0, 0): [9, 3, 2]}
    (headline,) = stand(curves, tasks=3).headlines
    assert [(row["method"], row["strength"], row["tasks"]) for row in headline.ranking] == [
        ("a", 0.1, 3),
        ("none", 0.0, 3),
    ]
    assert not headline.some_lag


def test_seeds_for_tuning_count_only_while_there_are_no_others():
    tuning = rows_of({("a", 1.0, 1000): [1]}, tasks=1)
    assert reported(tuning).equals(tuning)
    both = pl.concat([tuning, rows_of({("a", 1.0, 0): [2]}, tasks=1)])
    assert reported(both)["seed"].to_list() == [0]


def test_sensitivity_is_seen_on_seeds_for_tuning_where_there_are_any():
    drawings = Drawings(["a"])
    tuning = {("a", strength, 1000): [strength] for strength in (0.1, 0.2)}
    rows = rows_of(tuning | {("a", 0.2, 0): [0.9]}, tasks=1)
    (headline,) = standings(rows, drawings).headlines
    columns = drawings._charts[headline.sensitivity.chart]["columns"]
    assert (columns["strength"], columns["mean"]) == ([0.1, 0.2], [0.1, 0.2])


def test_sensitivity_has_the_step_size_that_validation_chose():
    parts = []
    for step_size, validation, test in ((1e-3, 0.9, 0.5), (5e-4, 0.1, 0.8)):
        for metric, value in (("validation_accuracy", validation), ("test_accuracy", test)):
            curves = {("a", strength, 0): [value + strength] for strength in (0.25, 0.5)}
            parts.append(rows_of(curves, tasks=1, metric=metric).with_columns(step_size=step_size))
    drawings = Drawings(["a"])
    (headline,) = standings(pl.concat(parts), drawings).headlines
    assert drawings._charts[headline.sensitivity.chart]["columns"]["mean"] == [0.75, 1.0]


def test_a_curve_has_no_more_points_than_can_be_seen():
    drawings = Drawings(["a"])
    found = standings(rows_of({("a", 1.0, 0): range(401)}, tasks=401), drawings)
    assert found.window == 3
    assert len(drawings._charts[found.headlines[0].curves.chart]["columns"]["mean"]) == 134


def test_intervals_have_places_from_the_lowest_end_to_the_highest():
    curves = {(method, 1.0, seed): [start + seed] for method, start in (("a", 5), ("b", 20)) for seed in range(4)}
    (headline,) = stand(curves, tasks=1).headlines
    best, other = headline.ranking
    assert headline.has_iqm
    assert (other["left"], best["right"]) == (0, 100)
    share = (best["iqm"] - other["low"]) / (best["high"] - other["low"])
    assert best["middle"] == pytest.approx(100 * share, abs=0.01)
    assert not stand({("a", 1.0, 0): [1]}, tasks=1).headlines[0].has_iqm


@pytest.mark.parametrize("diverged", [False, True])
def test_a_network_that_has_diverged_is_told(diverged):
    curves = {("a", 1.0, 0): [1], ("a", 1.0, 1): [2]}
    told = rows_of({key: [0] for key in curves} | {("a", 1.0, 0): [diverged]}, tasks=1, metric="diverged")
    (headline,) = standings(pl.concat([rows_of(curves, tasks=1), told]), Drawings(["a"])).headlines
    assert headline.diverged == diverged


def test_neighbours_are_averaged_member_by_member():
    rows = rows_of({("a", 1.0, 0): range(5), ("a", 1.0, 1): [10] * 5}, tasks=5)
    found = averaged(rows, 2)
    assert found.columns == rows.columns
    assert found.select("seed", "task", "value").sort("seed", "task").rows() == [
        *((0, task, value) for task, value in [(1, 0.5), (3, 2.5), (4, 4.0)]),
        *((1, task, 10.0) for task in (1, 3, 4)),
    ]
    assert averaged(rows, 1) is rows


@pytest.mark.parametrize(
    ("values", "packed"),
    [
        ([1.0, 1.0], 1.0),
        ([math.nan, math.nan], None),
        ([0.123456789, math.inf, None], [0.12346, None, None]),
        (["b", "a", "b"], {"words": ["b", "a"], "places": [0, 1, 0]}),
        (["b"], "b"),
        ([3, 4], [3, 4]),
        ([], []),
    ],
)
def test_columns_are_packed(values, packed):
    assert _packed(pl.Series(values)) == packed


def test_sensitivity_is_seen_before_the_runs_are_at_their_end():
    """The mean of the last two of the three tasks that are finished, of nine."""
    drawings = Drawings(["a"])
    curves = {("a", 0.1, 0): [0.0, 0.25, 0.75], ("a", 0.2, 0): [0.0, 0.5, 1.0]}
    (headline,) = standings(rows_of(curves, tasks=9), drawings).headlines
    columns = drawings._charts[headline.sensitivity.chart]["columns"]
    assert (columns["strength"], columns["mean"]) == ([0.1, 0.2], [0.5, 0.75])
