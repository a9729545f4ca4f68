"""What benchmarks compute from their rows, on rows whose answer is known."""

from pathlib import Path

import polars as pl
import pytest

from support.modules import module_at

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark_at(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return lambda name: module_at(BENCHMARKS / f"{name}.py")


def rows_of(curves, metric="test_accuracy"):
    """Rows of curves over tasks, by (method, strength, seed)."""
    rows = [
        ("run", 0, task, metric, value, seed, method, strength, len(curve))
        for (method, strength, seed), curve in curves.items()
        for task, value in enumerate(curve)
    ]
    names = ["run", "member", "task", "metric", "value", "seed", "method", "strength", "tasks"]
    return pl.DataFrame(rows, schema=names, orient="row").with_columns(options=pl.lit("{}"))


def test_of_equally_good_settings_the_smallest_is_chosen(benchmark_at):
    forms = benchmark_at("forms")
    comparison = forms.Comparison(problem="p", forms={}, metric="test_accuracy", last=2)
    rows = rows_of(
        {("l2", strength, 1000): [9, 0.5, level] for strength, level in ((1.0, 0.7), (0.1, 0.7), (0.01, 0.6))}
    )
    assert comparison.best(rows.with_columns(step_size=pl.lit(1e-3))) == (0.1, 1e-3)
    changing_world = benchmark_at("changing_world")
    returns = rows_of({("l2", strength, 1000): [-100, -50] for strength in (0.1, 1.0)}, "return")
    assert changing_world.best(returns) == 1.0, "there the largest"


def test_a_plateau_is_as_wide_as_its_triangle_is_at_the_floor(benchmark_at):
    strengths, means = pl.Series([1e-4, 1e-3, 1e-2]), pl.Series([0.0, 1.0, 0.0])
    plateau = benchmark_at("measuring").plateau
    assert plateau(strengths, means, 0.75) == pytest.approx(0.5, abs=1e-3)
    assert plateau(strengths, means, 0.0) == pytest.approx(2, abs=1e-3)


def test_a_table_in_tens_compares_all_but_the_first_ten_tasks(benchmark_at):
    first = {("none", 0.0, seed): [0.5] * 10 for seed in (0, 1)}
    curves = {key: [*curve, *[0.4] * 10, *[0.3] * 10] for key, curve in first.items()}
    curves |= {("l2", 0.1, 0): [0.1] * 10 + [0.6] * 20, ("l2", 0.1, 1): [0.1] * 10 + [0.8] * 20}
    rows = rows_of(curves).with_columns(options=pl.when(method="l2").then(pl.lit('{"every": 9}')).otherwise("options"))
    *_, best, none = benchmark_at("paper").table_in_tens(rows, "test_accuracy")
    assert best.startswith("| L2, every 9 | 0.1 | 0.100 | 0.700 ± 0.100 | 0.500 ± 0.067 | +0.350 (")
    assert none == "| no mitigation |  | 0.500 | 0.300 ± 0.000 | 0.400 ± 0.000 |  |"


def test_new_networks_at_each_task_are_called_starting_again(benchmark_at):
    columns = ["method", "optimizer", "options", "strength"]
    options = '{"variant": "task"}'
    kept = ("shrink-and-perturb", "adam", options, 1e-3)
    again = ("shrink-and-perturb", "adam-restarted", options, 1.0)
    found = benchmark_at("paper").named(pl.DataFrame([kept, again], schema=columns, orient="row"))
    assert found.rows() == [kept, ("starting again", "adam-restarted", "{}", 0.0)]


@pytest.mark.parametrize(
    ("accuracy", "lost"),
    [
        ([0.5, 1.0, 0.96, 0.94, 0.94], 3),  # from then on below 95 % of the best
        ([0.5, 1.0, 0.94, 0.96, 0.94], None),  # one task is too few
        ([0.5, 1.0, 0.94, 0.94, 0.96], None),  # it comes back
        ([0.9, 0.8, 0.7], 1),
    ],
)
def test_accuracy_is_lost_if_it_stays_low_for_two_tasks_at_least(accuracy, lost, benchmark_at):
    best = [max(accuracy[: task + 1]) for task in range(len(accuracy))]
    tasks = pl.DataFrame({"task": range(len(accuracy)), "accuracy": accuracy, "best": best}).with_columns(
        problem=pl.lit("p"), method=pl.lit("m"), run=pl.lit("r")
    )
    assert benchmark_at("early_warning").events(tasks)["lost"].to_list() == [lost]


@pytest.mark.parametrize(
    ("ours", "tasks", "verdict"), [(0.75, 2, "agrees"), (0.77, 2, "differs"), (0.75, 1, "unfinished")]
)
def test_a_published_number_agrees_where_the_intervals_touch(ours, tasks, verdict, benchmark_at, monkeypatch):
    field = benchmark_at("field")
    monkeypatch.setattr(field, "standard", lambda error, seeds: 0.025)
    row = field.Row(published=0.7, margin=0.03, place="Table 1", problem="p")
    rows = rows_of({("none", 0.0, seed): [ours] * tasks for seed in (0, 1)}, field.METRIC)
    assert field.line("name", row, 2, rows).endswith(f"| {tasks} of 2 | {verdict} |")
    assert field.line("name", row, 2, None).endswith("| 0 of 2 | not run |")


def test_strengths_are_chosen_on_a_seed_that_is_not_reported(benchmark_at):
    forms, asked = benchmark_at("forms"), []
    comparison = forms.Comparison(
        problem="random-label-digits",
        forms={"l2": forms.Form(method="l2", strengths=(0.1, 1.0))},
        metric="train_accuracy",
        around=(0.5, 2.0),
    )

    def trained(runs):  # 0.2 is the best
        asked.append([(run.strengths[0], run.seeds[0]) for run in runs])
        curves = [{("l2", strength, seed): [0.5, 1 - abs(strength - 0.2)]} for strength, seed in asked[-1]]
        rows = pl.concat(rows_of(curve, "train_accuracy") for curve in curves)
        return rows.with_columns(step_size=pl.lit(1e-3))

    tried, reported = comparison.measured("l2", 2, trained)
    first = [(0.1, 1000), (1.0, 1000)]
    assert asked == [first, [*first, (0.05, 1000), (0.2, 1000)], [(0.2, 0), (0.2, 1)]]
    assert (len(tried), len(reported)) == (8, 4)


def test_an_interval_is_students_and_its_low_end_comes_first(benchmark_at):
    assert benchmark_at("field").standard(2.0, 3) == pytest.approx(2 * 4.302653)
    compared = {"difference": 0.5, "low": -0.25, "high": 1.25}
    assert benchmark_at("measuring").with_interval(compared, 2) == "+0.50 (−0.25 to +1.25)"
    assert benchmark_at("measuring").with_interval(compared | {"low": None, "high": None}) == "+0.500"
