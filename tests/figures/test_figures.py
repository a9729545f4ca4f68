"""The paper's figures: which runs they need, and that they can be drawn from what those leave behind."""

import json
import re
import sys
import zlib
from pathlib import Path

import polars as pl
import pytest

from supple import cli, figures
from supple.diagnostics import DIAGNOSTICS
from supple.figures import figure_05
from supple.figures.control import ControlFigure
from supple.figures.figure import Figure
from supple.lab.grid import results
from supple.lab.problems import PROBLEMS, title_of
from supple.rl import train
from supple.rl.charts import INSIDE
from supple.runs import charts, sweep
from supple.runs.colours import COLOURS, GREY
from support.stores import store

SCALES = ("quick", "paper")
TRAINED = [number for number in figures.FILES if isinstance(figures.find(number), Figure)]
AT_SCALES = [(number, scale) for number in TRAINED for scale in figures.find(number).scales]
CONTROL = [number for number in figures.FILES if isinstance(figures.find(number), ControlFigure)]


def measure(run, member, task, metric):
    """Any number, the same each time."""
    return zlib.crc32(f"{run.method}{member}{task}{metric}".encode()) / 2**32


@pytest.mark.parametrize(("number", "scale"), AT_SCALES)
def test_runs_are_of_known_problems_and_measure_what_is_drawn(number, scale):
    figure = figures.find(number)
    runs = figure.runs(scale, 2)
    assert runs
    assert len(set(runs)) == len(runs)
    assert {run.scale for run in runs} == {scale}
    assert {run.seeds for run in runs} == {(0,), (1,)}
    for row in figure.panels(scale, 2):
        for panel in row:
            for run in panel.runs:
                assert run.problem in PROBLEMS
                assert panel.metric not in DIAGNOSTICS or panel.metric in run.diagnostics


@pytest.mark.parametrize("number", TRAINED)
def test_paper_scale_is_the_published_protocol(number):
    for run in figures.find(number).runs("paper", 1):
        protocol = PROBLEMS[run.problem].protocol("paper")
        # What a figure is about may differ: its network, its epochs (Figures 8, 12), or one task for long (13).
        free = {"model", "epochs"} if number != 13 else {"epochs", "tasks", "shift"}
        assert all(getattr(run, name) == value for name, value in protocol.items() if name not in free)


@pytest.mark.parametrize(("number", "scale"), [at for at in AT_SCALES if at[1] != "paper"])
def test_a_figure_is_drawn_from_the_store(number, scale, tmp_path):
    figure = figures.find(number)
    runs = figure.runs(scale, 1)
    panels = [panel for row in figure.panels(scale, 1) for panel in row]
    store(tmp_path, runs, {panel.metric for panel in panels}, measure)
    chart = figure.draw(lambda wanted: results(wanted, str(tmp_path)), scale, 1).to_dict()
    drawn = [axes for row in chart["vconcat"] for axes in row["hconcat"]]
    assert len(drawn) == len(panels)
    for axes, panel in zip(drawn, panels, strict=True):
        over_tasks = panel.against == "task"
        expected = set()
        for run in panel.runs:
            values = [measure(run, 0, task, panel.metric) for task in range(run.tasks)]
            expected |= {*values} if over_tasks else {sum(values) / len(values)}
        points = chart["datasets"][(axes.get("data") or chart["data"])["name"]]  # of all panels, if it is the same
        assert {round(point["mean"], 9) for point in points} == {round(value, 9) for value in expected}
    assert f"{scale} scale" in chart["title"]["subtitle"][0]


def test_figures_with_a_large_network_have_a_reduced_scale_with_the_strengths_chosen_there(tmp_path):
    assert {number for number, scale in AT_SCALES if scale == "reduced"} == {1, 2, 3, 13, 14}
    assert {run.model for number in (1, 2, 3, 13, 14) for run in figures.find(number).runs("reduced", 1)} == {
        "resnet18-narrow"
    }
    with pytest.raises(ValueError, match="expected figure 7 at scale quick or paper, got reduced"):
        cli.FigureCommand(number=7, scale="reduced", out=str(tmp_path))()


@pytest.mark.parametrize(("number", "problem"), [(2, "pixel-permutation-cifar10"), (3, "random-label-cifar10")])
def test_a_reduced_figure_shares_the_reported_runs(number, problem):
    """`results/reduced` has them: strengths and diagnostics are the same."""
    reported = pl.read_parquet(Path(__file__).parents[2] / f"results/reduced/{problem}.parquet")
    runs = [run for run in figures.find(number).runs("reduced", 3) if run.problem == problem]
    assert runs
    assert {run.folder("x").name for run in runs} <= set(reported["run"])


def test_the_librarys_own_method_is_in_colour_and_other_data_are_named(tmp_path):
    for number in (1, 3):
        figure = figures.find(number)
        runs = figure.runs("reduced", 2)
        store(tmp_path, runs, {panel.metric for row in figure.panels("reduced", 2) for panel in row}, measure)
        chart = figure.draw(lambda wanted: results(wanted, str(tmp_path)), "reduced", 2)
        drawn = json.dumps(chart.to_dict())
        if number == 1:
            assert "data imagenet32-75" in drawn
        else:
            assert COLOURS["decoupled-spectral"] in drawn
            assert GREY not in drawn


def test_lines_of_other_settings_than_methods_are_in_colour(tmp_path):
    """Grey ones have neither bands nor points."""
    figure = figures.find(7)
    runs = [run for row in figure.panels("quick", 2) for panel in row for run in panel.runs]
    store(tmp_path, runs, {"train_accuracy"}, measure)
    chart = figure.draw(lambda wanted: results(wanted, str(tmp_path)), "quick", 2).to_dict()
    drawn = [axes for row in chart["vconcat"] for axes in row["hconcat"]]
    assert all("transform" not in layer for axes in drawn for layer in axes["layer"])


def test_panels_side_by_side_have_numbers_on_their_axes(tmp_path):
    figure = figures.find(3)
    runs = figure.runs("quick", 1)
    panels = [panel for row in figure.panels("quick", 1) for panel in row]
    store(tmp_path, runs, {panel.metric for panel in panels}, measure)
    chart = figure.draw(lambda wanted: results(wanted, str(tmp_path)), "quick", 1)
    chart.save(tmp_path / "figure.svg")
    axes = re.split('aria-label="[XY]-axis', (tmp_path / "figure.svg").read_text())[1::2]  # Vega draws X before Y
    assert len(axes) == len(panels) > 1
    assert all(re.search("role-axis-label.*?<text[^>]*>[123]</text>", axis, re.DOTALL) for axis in axes)


def test_panels_have_titles_for_people():
    titles = [panel.title for row in figures.find(4).panels("quick", 1) for panel in row]
    assert titles == [title_of("random-label-cifar10")] == ["Random labels, CIFAR-10"]


def test_every_file_is_a_figure_that_says_what_it_shows():
    assert figures.FILES.keys() >= set(range(1, 17))
    for number, content in figures.contents().items():
        assert figures.find(number).title.startswith(f"Figure {number}: ")
        assert content.endswith(".")


def test_an_unknown_figure_is_named_with_those_there_are():
    with pytest.raises(ValueError, match="expected a figure of the paper, got 99: known are 1, 2, 3, 4, 5, 6"):
        figures.find(99)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("number", CONTROL)
def test_runs_of_agents_are_of_one_scale(number, scale):
    runs = figures.find(number).runs(scale, 2)
    assert len({run.folder("here").name for run in runs}) == len(runs)
    assert {run.scale for run in runs} == {scale}
    assert {run.seeds for run in runs} == {(0,), (1,)}
    assert all(run.is_reset for run in runs if run.method == "resets")


def test_the_command_for_agents(tmp_path, monkeypatch, capsys):
    """They are trained once, and drawn by what was varied."""
    trained, drawn = [], []

    def work_through(jobs, work, **_):
        trained.extend(jobs)
        store(tmp_path, jobs, ("return", *INSIDE), measure, done=4)

    monkeypatch.setattr(train, "dry_run", lambda run, **_: None)
    monkeypatch.setattr(sweep, "work_through", work_through)
    monkeypatch.setattr(charts, "save", lambda chart, out, name: drawn.append((name, chart.to_dict())) or [])
    for number in (5, 16):
        cli.FigureCommand(number=number, seeds=1, out=str(tmp_path))()
    assert len(trained) == len(set(trained)) == 16
    assert "6 of 6 already done" in capsys.readouterr().out, "the runs of Figure 16 are among those of Figure 5"
    (name, figure), (other_name, other) = drawn
    assert (name, other_name) == ("figure-05-quick", "figure-16-quick")
    assert "quick scale" in figure["title"]["subtitle"][0]
    assert [len(row["hconcat"]) for row in figure["vconcat"]] == [2, 2, 2, 2]
    titles = [panel["title"]["text"] for row in other["vconcat"] for panel in row["hconcat"]]
    assert titles == ["cartpole-swingup", "pendulum-swingup"]
    points = [point for rows in figure["datasets"].values() for point in rows]
    assert {point["method"] for point in points if "method" in point} == {"no mitigation", "resets", "spectral"}
    assert {point["strength"] for point in points if "strength" in point} >= set(figure_05.STRENGTHS["quick"])
    assert {point["reset_every"] for point in points if "reset_every" in point} == {500, 1000}


def test_without_the_packages_of_control_the_command_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ValueError, match=r"expected the extra `rl`, .*: pip install '\.\[rl\]' in the clone"):
        cli.FigureCommand(number=5, out=str(tmp_path))()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", TRAINED)
def test_no_figure_asks_for_an_off_the_shelf_network_with_crelu(number):
    """There is none: the run would be refused before it starts."""
    for scale in figures.find(number).scales:
        asked = {(run.model, run.method) for run in figures.find(number).runs(scale, 1)}
        assert asked.isdisjoint({(model, "crelu") for model in ("resnet18", "resnet18-narrow", "vit-tiny")})


def test_each_exponent_has_the_strength_that_is_best_for_it_at_paper_scale():
    """Written down a second time, from docs/reproduction.md: the steeper the penalty, the smaller the strength."""
    runs = figures.find(7).runs("paper", 1)
    found = {(json.loads(run.options)["exponent"], run.strengths[0]) for run in runs}
    assert found == {(1, 1e-1), (2, 1e-2), (4, 1e-4), (8, 1e-6)}


@pytest.mark.parametrize(("partly", "stamped"), [((), 0), ((0,), 2), ((0, 1), 2)])
def test_a_panel_is_stamped_if_any_of_its_runs_had_a_part_of_the_data(partly, stamped, tmp_path):
    figure = figures.find(7)
    store(tmp_path, figure.runs("quick", 2), {"train_accuracy"}, measure)

    def rows_of(wanted):
        return results(wanted, str(tmp_path)).with_columns(subset=pl.col("seed").is_in(partly))

    drawn = figure.draw(rows_of, "quick", 2).to_dict()["vconcat"]
    titles = [axes["title"]["text"] for row in drawn for axes in row["hconcat"]]
    whole = [title if isinstance(title, str) else " ".join(title) for title in titles]  # long ones have several lines
    assert sum(title.endswith("(part of the data set)") for title in whole) == stamped
