"""The paper's figures: which runs they need, and that they can be drawn from what those leave behind."""

import zlib

import pytest

from supple import figures
from supple.diagnostics import DIAGNOSTICS
from supple.figures.figure import Figure
from supple.lab.grid import results
from supple.lab.problems import PROBLEMS
from support.stores import store

SCALES = ("quick", "paper")
TRAINED = [number for number in figures.NUMBERS if isinstance(figures.load(number), Figure)]


def measure(run, member, task, metric):
    """Any number, the same each time."""
    return zlib.crc32(f"{run.method}{member}{task}{metric}".encode()) / 2**32


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("number", TRAINED)
def test_runs_are_of_known_problems_and_measure_what_is_drawn(number, scale):
    figure = figures.load(number)
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
    for run in figures.load(number).runs("paper", 1):
        protocol = PROBLEMS[run.problem].protocol("paper")
        # What a figure is about may differ: its network, its epochs (Figures 8, 12), or one task for long (13).
        free = {"model", "epochs"} if number != 13 else {"epochs", "tasks", "shift"}
        assert all(getattr(run, name) == value for name, value in protocol.items() if name not in free)


@pytest.mark.parametrize("number", TRAINED)
def test_a_figure_is_drawn_from_the_store(number, tmp_path):
    figure = figures.load(number)
    runs = figure.runs("quick", 2)
    panels = [panel for row in figure.panels("quick", 2) for panel in row]
    store(tmp_path, runs, {panel.metric for panel in panels}, measure)
    chart = figure.draw(lambda wanted: results(wanted, str(tmp_path)), "quick", 2).to_dict()
    drawn = [axes for row in chart["vconcat"] for axes in row["hconcat"]]
    assert len(drawn) == len(panels)
    assert "quick scale" in chart["title"]["subtitle"][0]


def test_an_unknown_figure_is_named_with_those_there_are():
    with pytest.raises(ValueError, match=r"expected a figure of the paper, got '5'.*known are 1, 2, 3, 4, 6"):
        figures.load(5)
