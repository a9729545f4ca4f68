"""The command as it is typed, its charts and its pictures."""

import itertools
import json
import os
import sys

import numpy as np
import polars as pl
import pytest
from PIL import Image

from supple import cli
from supple.lab.run import Run as LabRun
from supple.lab.trainer import train as lab_train
from supple.report import write_page
from supple.rl import charts, train
from supple.rl.envs import DmControl, make
from supple.rl.run import Run
from supple.rl.video import _render
from supple.runs import sweep
from supple.runs.changes import Changes
from supple.runs.store import load

SHORT = ["--steps", 20, "--random-steps", 10, "--evaluate-every", 10, "--episodes", 1, "--replay-ratio", 1]


@pytest.fixture
def supple(monkeypatch, tmp_path):
    def work_through(jobs, work, *, workers, threads, report):
        for job in jobs:
            work(job, lambda steps, job=job: report(job, steps))

    monkeypatch.setattr(sweep, "work_through", work_through)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["supple", "rl", *map(str, arguments), "--out", str(tmp_path)])
        cli.main()

    return call


def test_a_comparison_from_the_command_line(supple, tmp_path, capsys, monkeypatch):
    typed = [
        "Pendulum-v1",
        "--method",
        "none",
        "resets",
        "--seeds",
        2,
        "--reset-every",
        10,
        "--reset-unit",
        "steps",
        *SHORT,
    ]
    supple(*typed)
    printed = capsys.readouterr().out
    assert printed.count("no mitigation") == 1, "in the table"
    assert " none " not in printed
    assert "before the first reset" not in printed
    (chart,) = tmp_path.glob("chart-Pendulum-v1-*.svg")
    assert {path.name for path in tmp_path.glob("chart-*")} == {
        f"{chart.stem}.{kind}" for kind in ("svg", "png", "pdf", "html")
    }
    found = {path.parent.name.split("-")[2]: pl.read_parquet(path) for path in tmp_path.glob("*/metrics.parquet")}
    assert found.keys() == {"none", "resets"}
    assert len(list(tmp_path.glob("*/metrics.parquet"))) == 4
    ends = pl.concat(
        pl.read_parquet(path).filter((pl.col("metric") == "return") & (pl.col("task") == 1))
        for path in tmp_path.glob("Pendulum-v1-none-*/metrics.parquet")
    )["value"]
    assert f"{ends.mean():.1f} ± {ends.std() / 2**0.5:.1f}" in printed

    monkeypatch.setattr(train, "Training", None)
    supple(*typed)
    said, again = capsys.readouterr().out.split("\n", 1)
    assert said == f"4 of 4 already done in {tmp_path}"
    assert printed.endswith(again), "nothing is trained twice"


@pytest.mark.parametrize(
    ("schedule", "resets"),
    [
        ({}, False),
        ({"every": 816}, True),  # 16 at each of the steps from 10 on, until the evaluation at step 60
        ({"every": 817}, False),
        ({"every": 60, "unit": "steps"}, True),
        ({"every": 61, "unit": "steps"}, False),
    ],
)
def test_a_run_without_a_reset_says_so(schedule, resets):
    settings = {"steps": 90, "random_steps": 10, "replay_ratio": 16, "evaluate_every": 30}
    assert Run.of("Pendulum-v1", "resets", [0], **settings, resets=schedule).is_reset == resets
    assert not Run.of("Pendulum-v1", "none", [0], **settings).is_reset


def test_its_runs_lie_beside_those_of_the_laboratory(supple, tmp_path, capsys):
    """Results and report take a folder of both, and compare methods of one task with each other."""
    supple("Pendulum-v1", "--method", "none", "resets", "spectral", "--seeds", 1, *SHORT, "--inside")
    tasks = LabRun.of("random-label-digits", "none", [0], tasks=2, epochs=1, diagnostics=["spectral_norm"])
    lab_train(tasks, root=str(tmp_path))
    rows = load(str(tmp_path)).filter(pl.col("metric") == "return")
    rows = rows.filter(pl.col("task") == rows["task"].max())  # of two evaluations the first is left out
    ends = {str(method): each["value"].mean() for (method,), each in rows.group_by("method")}
    capsys.readouterr()
    cli.Results(runs=str(tmp_path))()
    printed = capsys.readouterr().out
    agents = "Pendulum-v1 (20 steps, preset paper, replay ratio 1"
    assert agents in " ".join(printed.split())
    assert "Random labels, digits (quick scale, shortened to 2 of 30 tasks" in " ".join(printed.split())
    for method, title in {"none": "no mitigation", "resets": "resets", "spectral": "spectral"}.items():
        (line,) = (line for line in printed.splitlines() if line.strip().startswith(title) and "-1" in line)
        assert f"{ends[method]:.1f}" in line
    assert f"{agents}); the last at 20 steps" in " ".join(printed.split())
    cli.Results(runs=str(tmp_path), metric="return")()
    assert "Random labels, digits" not in capsys.readouterr().out, "it has no such thing"
    write_page(str(tmp_path))
    page = (tmp_path / "index.html").read_text()
    assert page.count(f"<h2>{agents})</h2>") == 1, "one protocol, whatever the method"
    assert all(f"{ends[method]:.3f}" in page for method in ends)
    assert page.count("supple rl Pendulum-v1") == 3
    assert "made in Python" not in page, "each setting has its command"


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["cartpol-swingup"], "did you mean 'cartpole-swingup'?"),
        (["cartpole-swingup", "--method", "spektral"], "did you mean 'spectral'?"),
        (["cartpole-swingup", "--preset", "papper"], "did you mean 'paper'?"),
        (["cartpole-swingup", "--seeds", 0], "seeds from 1 to 1,000, got 0"),
        (["Pendulum-v1", "--reset-every", 9], "--method resets with --reset-every, got spectral"),
        (["Pendulum-v1", "--method", "none", "--strength", 1], "methods with a strength, got none"),
        (["Pendulum-v1", "--video"], "a task of the suite to draw, got 'Pendulum-v1'"),
        (["Pendulum-v1", "--device", "nowhere"], "a device of this machine, got 'nowhere'"),
    ],
)
def test_what_is_not_known(supple, typed, message, tmp_path):
    with pytest.raises(SystemExit, match="supple: expected") as caught:
        supple(*typed)
    assert message in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_strip_of_pictures(supple, tmp_path, capsys, monkeypatch):
    """Each frame has a colour of its own, so that the strip shows which were chosen. The world has changed by then."""
    drawn = []

    def render(self, size):
        drawn.append(np.full((size, size, 3), len(drawn), np.uint8))
        return drawn[-1]

    monkeypatch.setattr(DmControl, "render", render)
    supple("cartpole-balance", "--seeds", 1, "--video", *SHORT, "--change", "actions", "--change-every", 10)
    (path,) = tmp_path.glob("*/episode.png")
    assert f"video: {path}" in capsys.readouterr().out
    assert len(drawn) == 1 + 100  # one to see that it can be drawn, then every tenth of 1,000 steps
    picture = np.asarray(Image.open(path))
    assert picture.shape == (240, 8 * 240, 3)
    assert picture[0, ::240, 0].tolist() == [1 + round(index) for index in np.linspace(0, 99, 8)]


def test_without_a_gl_library_training_does_not_mind_and_pictures_say_so():
    world = make("cartpole-balance")
    world.begin(0)
    if os.environ["MUJOCO_GL"] != "off":
        pytest.skip("a GL library was asked for")
    with pytest.raises(ValueError, match="expected a GL library to draw with"):
        _render(world, 64)


# Charts.


def stored(capacity=1_000_000):
    """Seed s on problem t gives s + 10 t at each of two evaluations; other settings have fewer seeds."""
    rows = []
    for method, dials in {
        "none": [(0.0, None)],
        "spectral": [(1e-4, None), (1e-3, None)],
        "resets": [(0.0, 100), (0.0, 200)],
    }.items():
        for number, (strength, every) in enumerate(dials):
            options = json.dumps({"every": every} if every else {})
            for place, seed, task, metric in itertools.product(
                range(2), range(3 - number), range(2), ("return", *charts.INSIDE)
            ):
                problem = f"task{place}"
                run = f"{problem}-{method}-{number}-{seed}"
                rows.append(
                    (run, problem, method, strength, options, seed, task, metric, seed + 10.0 * place, capacity)
                )
    names = ["run", "problem", "method", "strength", "options", "seed", "task", "metric", "value", "capacity"]
    frame = pl.DataFrame(rows, schema=names, orient="row", infer_schema_length=None)
    return frame.with_columns(evaluate_every=50, steps=100)


def shown(chart):
    spec = chart.to_dict()
    return {row["method"]: row for row in spec["datasets"][spec["data"]["name"]] if row["step"] == 100}


def test_returns_over_steps():
    rows = stored().filter((pl.col("problem") == "task1") & (pl.col("strength") < 1e-3))
    found = shown(charts.over_steps(rows, "return", "title"))
    assert found["spectral"]["mean"] == pytest.approx(11)
    assert found["spectral"]["low"] == pytest.approx(11 - 1 / 3**0.5)
    assert found["spectral"]["seeds"] == 3


def test_the_column_of_steps_is_no_setting():
    """The commands draw rows that have it."""
    rows = stored().filter((pl.col("problem") == "task1") & (pl.col("strength") < 1e-3))
    drawn, with_column = (charts.over_steps(each, "return", "") for each in (rows, charts.with_steps(rows)))
    assert with_column.to_dict() == drawn.to_dict()


def test_changes_of_the_world_have_rules():
    """One world ends at step 50, the other with the run."""
    rows = stored().filter((pl.col("problem") == "task1") & (pl.col("method") != "spectral"))
    changing = rows.with_columns(change=pl.lit("actions"), change_every=50)
    chart = charts.over_steps(changing, "return", "title", "returns").to_dict()
    assert chart["title"]["subtitle"] == "returns; new actions every 50 steps, after the evaluation at a dashed line"
    rule, label, *others = chart["layer"]
    assert (rule["mark"]["type"], label["mark"]["type"]) == ("rule", "text")
    assert chart["datasets"][rule["data"]["name"]] == [{"step": 50, "label": "change 1"}]
    same = charts.over_steps(rows, "return", "title", "returns").to_dict()
    assert len(same["layer"]) == len(others)
    assert same["title"]["subtitle"] == "returns"


def test_how_well_each_world_was_learned():
    """Worlds end with evaluations 1 and 3; evaluation 5 comes at the run's end, in the middle of one."""
    curves = {0: [0.0, 10, 2, 20, 3, 7], 1: [2.0, 14, 4, 24, 5, 11]}
    rows = pl.DataFrame(
        [("return", "none", seed, task, value) for seed, curve in curves.items() for task, value in enumerate(curve)],
        schema=["metric", "method", "seed", "task", "value"],
        orient="row",
    )
    rows = pl.concat([rows, rows.with_columns(metric=pl.lit("entropy"), value=pl.col("value") + 9)])
    changes = Changes("task", every=100, evaluate_every=50, steps=260)
    config = pl.DataFrame({"change": "task", "change_every": [100, 50], "evaluate_every": 50, "steps": 260})
    assert (Changes.of(config[:1]), Changes.of(config)) == (changes, None)
    assert (changes.places, str(changes)) == ((100, 200), "new task every 100 steps")
    (found,) = changes.learned(rows, ["method"]).to_dicts()
    assert found == pytest.approx(
        {"method": "none", "overall": 8.5, "learned": 17, "overall_error": 1.5, "learned_error": 2}
    )


def test_aggregates_over_tasks():
    rows = stored().filter((pl.col("strength") < 1e-3) & (pl.col("method") != "resets"))
    middle = shown(charts.aggregate(rows, "title"))["no mitigation"]
    assert middle["mean"] == pytest.approx(6)
    assert middle["low"] < 6 < middle["high"]


def test_sensitivity_has_the_error_over_seeds_and_not_over_tasks():
    rows = [
        ("return", "spectral", problem, seed, strength, 3, level + seed)
        for problem, level in (("a", 100.0), ("b", 500.0), ("c", 900.0))
        for seed in (0, 2)
        for strength in (1e-4, 1e-3)
    ]
    columns = ["metric", "method", "problem", "seed", "strength", "task", "value"]
    rows = pl.DataFrame(rows, schema=columns, orient="row").with_columns(
        run=pl.col("problem") + pl.col("seed").cast(str)
    )
    chart = charts.sensitivity(rows, "strength", "strength").to_dict()
    (points,) = chart["datasets"].values()
    assert [(point["mean"], point["error"], point["seeds"]) for point in points] == [(501, pytest.approx(1), 2)] * 2


def test_a_method_of_ones_own_and_its_events(supple, tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    own = ["--method", "support.extensions:Free", "--strength", 0.2]
    supple("Pendulum-v1", *own, *SHORT, "--seeds", 1, "--tensorboard", tmp_path / "events")
    rows = load(str(tmp_path))
    assert rows.select("method", "strength").unique().rows() == [("support.extensions:Free", 0.2)]
    (events,) = (tmp_path / "events").rglob("events.*")
    reader = event_accumulator.EventAccumulator(str(events.parent)).Reload()
    assert [event.step for event in reader.Scalars("return")] == [10, 20]


def test_seeds_are_drawn_within_a_problem_and_never_across():
    """Seeds that agree leave nothing to chance, however far the problems are apart."""
    rows = pl.DataFrame(
        [
            ("return", "spectral", problem, seed, 1e-4, 0, level, 100, 100)
            for problem, level in (("a", 1.0), ("b", 11.0))
            for seed in range(3)
        ],
        schema=["metric", "method", "problem", "seed", "strength", "task", "value", "evaluate_every", "steps"],
        orient="row",
    )
    found = shown(charts.aggregate(rows, "title"))["spectral"]
    assert (found["low"], found["mean"], found["high"]) == (6, 6, 6)


def test_the_usual_period_of_resets_has_a_place_on_the_axis():
    """A configuration leaves out the options that are the defaults."""
    rows = pl.DataFrame({"options": ["{}", '{"every": 500}', '{"layers": 1}']})
    assert charts.with_periods(rows)["reset_every"].to_list() == [2_560_000, 500, 2_560_000]


def test_the_end_is_each_runs_own():
    """A run with two evaluations ends with the second one, a run with four with the fourth."""
    rows = pl.DataFrame(
        [
            ("return", "spectral", f"run{strength}", 0, strength, task, float(task))
            for strength, evaluations in ((1e-4, 2), (1e-3, 4))
            for task in range(evaluations)
        ],
        schema=["metric", "method", "run", "seed", "strength", "task", "value"],
        orient="row",
    )
    (points,) = charts.sensitivity(rows, "strength", "strength").to_dict()["datasets"].values()
    assert {point["strength"]: point["mean"] for point in points} == {1e-4: 1, 1e-3: 3}


def test_strengths_of_one_method_have_dashes_and_a_strength_for_each_method_has_none():
    rows = stored().filter(pl.col("method") != "resets")
    for least, settings in ((0.0, {"0", "0.0001", "0.001"}), (1e-3, set())):
        kept = rows.filter((pl.col("strength") >= least) | (pl.col("method") == "none"))
        spec = charts.aggregate(kept, "title").to_dict()
        points = spec["datasets"][spec["data"]["name"]]
        assert {row.get("setting") for row in points} - {None} == settings
        assert any("strokeDash" in layer["encoding"] for layer in spec["layer"]) == bool(settings)
