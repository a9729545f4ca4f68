"""Figure 16: returns of soft actor-critic on each of seven tasks; its runs are among those of Figure 5."""

import altair as alt
import polars as pl

from supple.figures.control import TASKS, ControlFigure, RowsOf, compared
from supple.lab.problems import Scale
from supple.rl.charts import over_steps
from supple.rl.run import Run

COLUMNS = 3


def runs(scale: Scale, seeds: int) -> list[Run]:
    return compared(scale, seeds, inside=True)


def charts(rows_of: RowsOf, scale: Scale, seeds: int) -> list[list[alt.LayerChart]]:
    rows = rows_of(runs(scale, seeds))
    panels = [over_steps(rows.filter(pl.col("problem") == task), "return", task) for task in TASKS[scale]]
    return [panels[start : start + COLUMNS] for start in range(0, len(panels), COLUMNS)]


FIGURE = ControlFigure(
    title="Figure 16: returns on each task",
    claim="In five of seven environments, spectral regularization learns in fewer steps than resets do.",
    runs=runs,
    charts=charts,
    note="mean and standard error. The tasks are not in the paper's text",
)
