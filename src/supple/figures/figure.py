"""The parts of a figure: panels in rows and columns, each with its runs and curves."""

import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import altair as alt
import polars as pl

from supple.lab import problems
from supple.lab.grid import product
from supple.lab.problems import Scale
from supple.lab.run import Run
from supple.runs.charts import configured, curves_of, over_seeds, sensitivity_of, shared_selections

METHODS = (
    "none",
    "l2",
    "l2-init",
    "shrink-and-perturb",
    "redo",
    "crelu",
    "wasserstein",
    "streaming-ewc",
    "spectral",
)
"""The methods that the paper compares."""

REGULARIZERS = ("l2", "l2-init", "wasserstein", "streaming-ewc", "spectral")
"""The regularizers whose strength the paper swept."""

TUNED: dict[str, dict[str, float | None]] = {
    "random-labels": {"none": None, "l2-init": 1e-2, "spectral": 1e-3, "decoupled-spectral": 3.0},
    "other": {"none": None, "l2-init": 1e-4, "spectral": 1e-2},
}
"""At reduced scale, the methods and their strengths, chosen on random labels and pixel permutation of CIFAR-10."""

REDUCED_DIAGNOSTICS = (
    "spectral_norm",
    "smallest_singular_value",
    "weight_norm",
    "stable_rank",
    "dead_units",
    "representation_change",
)
"""What all runs of a ResNet-18 at reduced scale measure; gradients of each example would take too much memory."""

NOTE_WIDTH = 120
"""The maximum number of characters in a line of a figure's subtitle."""

EPOCHS: dict[Scale, tuple[int, ...]] = {"paper": (40, 80, 120), "quick": (20, 40)}
"""Epochs per task of the MLP, by scale."""


@dataclass(frozen=True)
class Panel:
    """One set of axes."""

    title: str
    runs: Sequence[Run]
    metric: str = "train_accuracy"
    series: str = "method"
    """The setting with one line for each of its values."""
    against: str = "task"
    """The horizontal axis: the task, or ``strength`` (then the mean over all tasks is drawn)."""


@dataclass(frozen=True)
class Figure:
    """A figure of the paper to reproduce."""

    title: str
    claim: str
    """The paper's claim about the figure."""
    panels: Callable[[Scale, int], list[list[Panel]]]
    """Makes the rows of panels from the scale and the number of seeds."""
    note: str = ""
    """Differences from the paper, and choices that the paper does not state."""
    scales: Sequence[Scale] = ("quick", "paper")
    """The scales at which it can be drawn."""

    def runs(self, scale: Scale, seeds: int) -> list[Run]:
        """All runs that the figure needs, without duplicates."""
        return list(dict.fromkeys(run for row in self.panels(scale, seeds) for panel in row for run in panel.runs))

    def draw(self, rows_of: Callable[[Iterable[Run]], pl.DataFrame], scale: Scale, seeds: int) -> alt.VConcatChart:
        """The chart; ``rows_of`` returns the measurements of runs."""
        read = cache(rows_of)  # panels about other metrics of the same runs
        charts = [
            [_draw(panel, read(tuple(panel.runs))) for panel in row if panel.runs] for row in self.panels(scale, seeds)
        ]
        stamp = f"{scale} scale, {over_seeds(seeds)}"
        return arranged(charts, self.title, stamp, self.note)


def arranged(charts: Iterable[Sequence[alt.Chart | alt.LayerChart]], title: str, *subtitle: str) -> alt.VConcatChart:
    """Rows of charts under one title; the subtitle's long lines wrap, and empty ones are left out."""
    lines = [line for text in subtitle for line in textwrap.wrap(text, NOTE_WIDTH)]
    text = alt.Title(title, subtitle=lines, anchor="start")
    with shared_selections():
        return configured(alt.vconcat(*(alt.hconcat(*row) for row in charts)).properties(title=text))


def _draw(panel: Panel, rows: pl.DataFrame) -> alt.LayerChart:
    draw = curves_of if panel.against == "task" else sensitivity_of
    data, usual = rows["dataset"][0], problems.find(rows["problem"][0]).dataset
    title = panel.title + (f", data {data}" if data != usual else "")
    title += " (part of the data set)" if rows["subset"].any() else ""
    # All methods in colour: panels of other runs share the legend, and must agree on which lines are grey.
    coloured = (*METHODS, "decoupled-spectral") if panel.series == "method" else None
    return draw(rows, panel.metric, title, series=panel.series, width=240, height=180, coloured=coloured)


def sensitivity(problem: str, scale: Scale, seeds: int, **changes: Any) -> Panel:
    """Training accuracy, mean over all tasks, against the strength of three regularizers."""
    strengths = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5) if scale == "paper" else (1e-2, 1e-3, 1e-4)
    methods = ("none", "l2", "l2-init", "spectral")
    diagnostics = None if scale == "paper" else ()
    runs = product(problem, methods, range(seeds), strengths=strengths, scale=scale, diagnostics=diagnostics, **changes)
    return Panel(problems.title_of(problem), runs, against="strength")


def networks(scale: Scale) -> dict[str, str]:
    """The large networks by their names in the paper; below paper scale without the vision transformer (too slow)."""
    return {
        "quick": {"ResNet-18": "resnet18"},
        "reduced": {"narrow ResNet-18": "resnet18-narrow"},
        "paper": {"ResNet-18": "resnet18", "Vision Transformer": "vit-tiny"},
    }[scale]


PAPERS_STRENGTHS = (
    "regularizers at the paper's strength, other methods at their defaults (tuned on digits); at reduced scale all at "
    "the strength chosen there on CIFAR-10"
)
DEFAULT_STRENGTHS = "every method at its default strength (tuned on digits); the paper tuned each method"
ALL_SCALES: Sequence[Scale] = ("quick", "reduced", "paper")
SMALLER_NOTE = "below paper scale without the vision transformer, which takes seconds a step on a CPU"


def compared(
    problem: str,
    scale: Scale,
    seeds: int,
    *,
    model: str | None = None,
    strengths: Sequence[float] = (),
    diagnostics: Sequence[str] = (),
    **changes: Any,
) -> list[Run]:
    """The paper's methods on a problem; at the smaller scales only some of them.

    Args:
        problem: its name.
        scale: of the protocol.
        seeds: number of seeds, from 0.
        model: the problem's when left out. Off-the-shelf networks have no CReLU variant.
        strengths: of the regularizers, except at reduced scale, which has those that were chosen there; each method's
            default when left out.
        diagnostics: those that are drawn; at the larger scales the same ones are measured everywhere, so that figures
            share runs.
        changes: to the protocol.
    """
    if scale == "reduced":
        tuned = TUNED["random-labels" if problem.startswith("random-label") else "other"]
        changes |= {"scale": scale, "model": model, "diagnostics": REDUCED_DIAGNOSTICS}
        return [
            Run.of(problem, method, [seed], strength=strength, **changes)
            for method, strength in tuned.items()
            for seed in range(seeds)
        ]
    methods = METHODS if scale == "paper" else ("none", "l2-init", "spectral")
    off_the_shelf = (model or problems.find(problem).model) in ("resnet18", "vit-tiny")
    return [
        run
        for method in methods
        if not (off_the_shelf and method == "crelu")
        for run in product(
            problem,
            [method],
            range(seeds),
            strengths=strengths if method in REGULARIZERS else (),
            scale=scale,
            model=model,
            diagnostics=None if scale == "paper" else diagnostics,
            **changes,
        )
    ]
