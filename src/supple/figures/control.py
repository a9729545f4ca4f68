"""The parts of the figures about reinforcement learning: agents on several tasks."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import polars as pl

from supple.figures.figure import arranged
from supple.lab.problems import Scale
from supple.rl.run import PAPER_STEPS, Run
from supple.runs.stats import note_on_diverged

METHODS = ("none", "resets", "spectral")

TASKS: dict[Scale, tuple[str, ...]] = {
    "paper": (
        "acrobot-swingup",
        "hopper-hop",
        "humanoid-walk",
        "humanoid-run",
        "quadruped-run",
        "dog-trot",
        "dog-run",
    ),
    "quick": ("cartpole-swingup", "pendulum-swingup"),
}

SETTINGS: dict[Scale, dict[str, Any]] = {
    "paper": {"steps": PAPER_STEPS},
    "quick": {"steps": 1_000, "random_steps": 250, "replay_ratio": 2, "evaluate_every": 250, "episodes": 1},
}

PERIODS: dict[Scale, tuple[int, ...]] = {"paper": (2_560_000, 640_000, 1_280_000, 5_120_000), "quick": (500, 1_000)}
"""Updates from one reset to the next: the first everywhere, the others in the sensitivity of Figure 5."""

RowsOf = Callable[[Iterable[Run]], pl.DataFrame]


@dataclass(frozen=True)
class ControlFigure:
    """A figure whose runs are those of ``supple rl``."""

    title: str
    claim: str
    """The paper's claim about the figure."""
    runs: Callable[[Scale, int], list[Run]]
    """All runs that the figure needs, without duplicates, for a scale and a number of seeds."""
    charts: Callable[[RowsOf, Scale, int], list[list[alt.LayerChart]]]
    """The rows of charts."""
    note: str
    """Differences from the paper, and choices that the paper does not state."""
    scales: Sequence[Scale] = ("quick", "paper")
    """The scales at which it can be drawn."""

    def draw(self, rows_of: RowsOf, scale: Scale, seeds: int) -> alt.VConcatChart:
        """The chart; ``rows_of`` returns the measurements of runs."""
        stamp = f"{scale} scale, {'one seed' if seeds == 1 else f'{seeds} seeds'}"
        diverged = note_on_diverged(rows_of(self.runs(scale, seeds)), "return")
        return arranged(self.charts(rows_of, scale, seeds), self.title, stamp, self.note, diverged)


def agents(method: str, scale: Scale, seeds: int, *, period: int | None = None, **changes: Any) -> list[Run]:
    """A run for each task and seed; resets have the first of ``PERIODS`` when ``period`` is left out."""
    resets = {"every": period or PERIODS[scale][0]} if method == "resets" else None
    return [
        Run.of(task, method, [seed], resets=resets, **SETTINGS[scale], **changes)
        for task in TASKS[scale]
        for seed in range(seeds)
    ]


def compared(scale: Scale, seeds: int, **changes: Any) -> list[Run]:
    """The three methods at their defaults."""
    return [run for method in METHODS for run in agents(method, scale, seeds, **changes)]
