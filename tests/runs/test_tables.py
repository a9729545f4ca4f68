"""Tables in a terminal: what they show, how they are title_with_scale, and that they fit."""

import io
import math

import polars as pl
import pytest
from rich.console import Console

from supple.lab.problems import protocol_of, title_of
from supple.runs.tables import results_table, title_with_scale
from supple.training.methods import METHODS


def frame(values, *, seeds=2, **setting):
    """Over tasks, one more for each further seed."""
    setting = {"problem": "p", "scale": "quick", "subset": False, "method": "none", "strength": 0.0} | setting
    rows = [(seed, task, float(value + seed)) for seed in range(seeds) for task, value in enumerate(values)]
    found = pl.DataFrame(rows, schema=["seed", "task", "value"], orient="row")
    return found.with_columns(
        metric=pl.lit("train_accuracy"),
        tasks=pl.lit(len(values)),
        **{key: pl.lit(each) for key, each in setting.items()},
    )


def shown(rows, metric="train_accuracy", width=100, **options):
    """Title, headings and cells, as they are printed."""
    console = Console(file=io.StringIO(), width=width)
    console.print(results_table(rows, metric, **options))
    lines = [line.rstrip() for line in console.file.getvalue().splitlines() if line.strip(" ─")]
    assert all(len(line) <= width for line in lines)
    first = next(at for at, line in enumerate(lines) if line.startswith(" method"))
    title = " ".join(line.strip() for line in lines[:first])
    return title, [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines[first:]]


def test_a_line_says_what_was_measured():
    title, (headings, row) = shown(frame([9, 1, 2, 3, 4, 5], method="l2", strength=1e-4))
    assert title == "Training accuracy: p (quick scale)"
    assert headings == ["method", "strength", "first", "last 5", "seeds"]
    # The seeds' means are 3 and 4: a deviation of 1/√2 over √2.
    assert row == ["L2", "0.0001", "9.500", "3.500 ± 0.500", "2"]


def test_four_seeds_have_an_interquartile_mean():
    _, (headings, row) = shown(frame([1, 2], seeds=4).with_columns(value=pl.col("value") + 10 * (pl.col("seed") == 3)))
    assert headings[4:] == ["IQM", "its 95 %", "seeds"]
    assert row[3].startswith("6.000")
    assert row[4] == "3.500", "the second and the third of 2, 3, 4, 15"


def test_a_short_run_shortens_the_mean_of_no_other():
    _, (headings, *lines) = shown(pl.concat([frame([9, 1, 2, 3, 4, 5], method="none"), frame([1, 2], method="l2")]))
    assert "last 5" in headings
    assert "tasks" in headings
    assert [line[headings.index("last 5")] for line in lines] == ["3.500 ± 0.500", "2.500 ± 0.500"]


def test_too_few_seeds_beside_enough_have_dashes():
    rows = pl.concat([frame([1, 9], seeds=3, method="none"), frame([1, 2], seeds=4, method="l2")])
    _, (_, few, enough) = shown(rows)
    assert few[-3:] == ["-", "-", "3"]
    assert enough[-3] == "3.500"


def test_what_was_not_measured_in_the_first_task_has_a_dash():
    _, (_, row) = shown(frame([1, 2, 3]).filter(pl.col("task") > 0))
    assert row[2] == "-"


def test_the_best_come_first_and_one_seed_has_no_error():
    rows = pl.concat([frame([1, value], seeds=1, method=method) for method, value in (("a", 1), ("b", 3), ("c", 2))])
    _, (headings, *lines) = shown(rows, count=1)
    assert headings[3] == "last 1"
    assert [(line[0], line[1], line[3]) for line in lines] == [
        ("b", "-", "3.000"),
        ("c", "-", "2.000"),
        ("a", "-", "1.000"),
    ]


@pytest.mark.parametrize("metric", ["train_loss", "dead_units"])
def test_the_lowest_come_first_where_less_is_better(metric):
    rows = pl.concat([frame([value], seeds=1, method=method) for method, value in (("a", 1), ("b", 3), ("c", 2))])
    _, (_, *lines) = shown(rows.with_columns(metric=pl.lit(metric)), metric)
    assert [line[0] for line in lines] == ["a", "c", "b"]


def test_what_differs_has_a_column():
    rows = pl.concat([frame([1, 2], step_size=step_size, model="mlp") for step_size in (1e-3, 5e-4)])
    _, (headings, *lines) = shown(rows)
    assert headings[1:3] == ["strength", "step_size"]
    assert {line[2] for line in lines} == {"0.001", "0.0005"}


def test_agents_show_the_steps_of_the_environment():
    rows = pl.concat(
        [
            frame([1] * tasks, evaluate_every=every, steps=steps, method=method)
            for method, tasks, every, steps in [("none", 5, 100, 450), ("l2", 3, 500, 1500)]
        ]
    )
    for count, expected in {2: {"no mitigation": "400–450", "L2": "1,000–1,500"}, 1: {"L2": "1,500"}}.items():
        _, (headings, *lines) = shown(rows, count=count, width=120)
        assert headings[-2:] == ["at steps", "seeds"]
        assert "steps" not in headings
        assert expected.items() <= {line[0]: line[-2] for line in lines}.items()


def test_the_title_says_the_steps_that_all_agents_have():
    agents = pl.concat(
        [frame([900, 1000.25, 1000.75], method=name, evaluate_every=100, steps=3000) for name in ("none", "l2")]
    )
    title, (headings, row, _) = shown(agents)
    assert title == "Training accuracy: p (3,000 steps); the last 2 at 200–300 steps"
    assert "at steps" not in headings
    assert row == ["no mitigation", "-", "900.5", "1001.0 ± 0.5", "2"]
    assert shown(agents, count=1)[0].endswith("; the last at 300 steps")


def test_diverged_networks_are_told():
    rows = frame([1, 2], seeds=4)
    diverged = rows.with_columns(metric=pl.lit("diverged"), value=pl.when(pl.col("seed") == 3).then(1.0).otherwise(0.0))
    _, (_, row) = shown(pl.concat([rows, diverged]))
    assert row[-1] == "4 (1 diverged)"


def test_what_is_not_a_number_is_not_the_best():
    rows = pl.concat([frame([1, math.nan], method="a"), frame([1, 2], method="b")])
    _, (_, *lines) = shown(rows, count=1)
    assert [line[0] for line in lines] == ["b", "a"]
    assert lines[1][3] == "nan ± nan"


def test_options_that_are_not_the_defaults_have_a_column_although_all_have_them():
    rows = frame([1, 2], method="spectral", strength=1e-3, options='{"target": "initial"}')
    _, (headings, row) = shown(rows)
    assert headings[1:3] == ["strength", "options"]
    assert row[:3] == ["spectral", "0.001", "target: initial"]
    assert "options" not in shown(rows.with_columns(options=pl.lit("{}")))[1][0]


AGENT = {"evaluate_every": 100, "steps": 500_000, "preset": "sb3", "replay_ratio": 1}


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ({}, "p (quick scale)"),
        (AGENT, "p (500,000 steps, preset sb3, replay ratio 1)"),
        (AGENT | {"scale": "paper"}, "p (paper scale)"),
        (
            {"matmul_precision": "medium", "autocast": "bfloat16"},
            "p (quick scale, matmul precision medium, autocast bfloat16)",
        ),
        ({"matmul_precision": "highest", "autocast": None}, "p (quick scale)"),
        ({"scale": "paper"}, "p (paper scale)"),
        ({"subset": True}, "p (quick scale, part of the data set)"),
        ({"scale": "paper", "subset": True}, "p (paper scale, part of the data set)"),
    ],
)
def test_stamps(setting, expected):
    rows = frame([1, 2], **setting)
    assert title_with_scale(rows) == expected
    assert shown(rows)[0].startswith(f"Training accuracy: {expected}")
    assert title_with_scale(rows, "Problem for people") == expected.replace("p", "Problem for people", 1)


def test_a_shortened_run_says_so():
    rows = frame([1, 2], scale="paper", epochs=40, examples=100)
    protocol = {"tasks": 50, "epochs": 40, "examples": 12_800, "optimizer": "adam"}
    assert (
        title_with_scale(rows, "P", protocol) == "P (paper scale, shortened to 2 of 50 tasks, 100 of 12,800 examples)"
    )
    assert title_with_scale(rows, "P", {"tasks": 2}) == "P (paper scale)"
    protocol |= {"tasks": 2, "examples": None}
    assert title_with_scale(rows, "P", protocol) == "P (paper scale, shortened to 100 examples)"


def test_a_longer_run_says_so():
    rows = frame([1, 2], epochs=20, examples=800)
    protocol = {"tasks": 2, "epochs": 10, "examples": 400}
    assert (
        title_with_scale(rows, "P", protocol) == "P (quick scale, 20 instead of 10 epochs, 800 instead of 400 examples)"
    )


def test_at_a_scale_with_other_data_than_the_title_has_they_are_named():
    problem = "class-incremental-tiny-imagenet"
    rows = frame([1] * 10, problem=problem, scale="reduced", dataset="imagenet32-75")
    assert (
        title_with_scale(rows, title_of(problem), protocol_of(problem, "reduced"))
        == "Class-incremental, tiny-ImageNet (reduced scale, data imagenet32-75)"
    )


def test_one_short_run_among_whole_ones_shortens_nothing():
    rows = pl.concat([frame([1, 2], scale="paper"), frame([1] * 50, scale="paper")])
    assert title_with_scale(rows, "P", {"tasks": 50}) == "P (paper scale)"


def test_a_changed_protocol_says_so():
    rows = pl.concat([frame([1, 2], scale="paper", dataset="digits", step_size=size) for size in (1e-3, 1e-2)])
    protocol = {"tasks": 2, "dataset": "mnist", "step_size": 1e-3}
    assert title_with_scale(rows, "P", protocol) == "P (paper scale, data digits)"
    assert title_with_scale(rows, "P", protocol | {"dataset": "digits"}) == "P (paper scale)"


def test_it_fits_a_hundred_columns():
    longest = max(METHODS, key=lambda name: len(METHODS[name].title))
    rows = pl.concat(
        [
            frame([0.123, 0.456], seeds=10, method=longest, strength=strength, step_size=5e-4).with_columns(
                pl.col("value") / 10
            )
            for strength in (1e-4, 0.0005)
        ]
    )
    diverged = rows.with_columns(metric=pl.lit("diverged"), value=1.0)
    _, (_, *lines) = shown(pl.concat([rows, diverged]), width=100)
    for line in lines:
        assert line[0] == METHODS[longest].title
        assert line[-1] == "10 (10 diverged)"  # nothing is cut off
        assert len(line) == 7
