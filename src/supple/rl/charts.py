"""Charts of reinforcement learning from stored rows: returns over steps, aggregates over tasks, and sensitivity."""

from dataclasses import replace

import altair as alt
import numpy as np
import polars as pl

from supple.rl.resets import Resets
from supple.runs.changes import Changes
from supple.runs.colours import COLOURS
from supple.runs.lines import Lines, axis_extent, lines_over_tasks
from supple.runs.stats import MEAN_AND_ERROR, bootstrap_interval, interquartile_mean, with_band
from supple.training.methods import title_of

WIDTH, HEIGHT = 480, 280
"""The size of the axes, in pixels."""

INSIDE = ("overestimation", "critic_weight_norm", "critic_gradient_norm", "critic_spectral_norm")
"""The diagnostics of agents that figure 5 shows."""


def over_steps(rows: pl.DataFrame, metric: str, title: str, subtitle: str = "") -> alt.LayerChart:
    """A metric over steps, a line for each setting: the mean over seeds, shaded by its standard error.

    Dashed lines show where the world changes, and the subtitle says what changes.
    """
    lines, changes = lines_over_tasks(rows, metric), Changes.of(rows)
    every, steps = (pl.col(name) if name in lines.others else rows[name][0] for name in ("evaluate_every", "steps"))
    lines = at_steps(lines, every, steps)
    if changes:
        lines = replace(lines, changes=changes.places)
        subtitle = "; ".join(filter(None, [subtitle, f"{changes}, after the evaluation at a dashed line"]))
    return lines.sized(title, subtitle, width=WIDTH, height=HEIGHT)


def aggregate(rows: pl.DataFrame, title: str) -> alt.LayerChart:
    """Returns over steps of all tasks: the interquartile mean over runs, with its 95 % stratified bootstrap."""
    points = _interquartile(with_steps(rows))
    methods = points["method"].unique(maintain_order=True)
    within = () if len(points.unique(["method", "strength"])) == len(methods) else ("strength",)
    if within:
        points = points.with_columns(setting=pl.col("strength").map_elements("{:g}".format, pl.String))
    lines = Lines(
        points=points,
        metric="return",
        at="step",
        series="method",
        coloured=tuple(methods),
        others=("strength",),
        within=within,
        y_title="interquartile mean of returns",
    )
    return lines.sized(title, width=WIDTH, height=HEIGHT)


def at_steps(lines: Lines, every: int | pl.Expr, steps: int | pl.Expr) -> Lines:
    """Lines over evaluations, with the environment steps before each as horizontal axis.

    Args:
        lines: over tasks.
        every: the environment steps between two evaluations, a number or a column of the lines.
        steps: all of a run's.
    """
    step = pl.min_horizontal(pl.col("task") * every, steps).alias("step")
    return replace(lines, at="step", points=lines.points.with_columns(step).drop("task"))


def with_steps(rows: pl.DataFrame) -> pl.DataFrame:
    """Stored rows with a column ``step``: the environment steps taken before each evaluation."""
    return rows.with_columns(step=pl.min_horizontal((pl.col("task") + 1) * pl.col("evaluate_every"), pl.col("steps")))


def with_periods(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows with a column ``reset_every``, read from the options of the method ``resets``."""
    every = pl.col("options").str.json_path_match("$.every").cast(pl.Int64)
    return rows.with_columns(reset_every=every.fill_null(Resets().every))


def sensitivity(rows: pl.DataFrame, dial: str, name: str) -> alt.LayerChart:
    """The final return of one method against a setting: mean over tasks, then mean and standard error over seeds.

    Args:
        rows: stored rows of the method.
        dial: the column of the setting.
        name: of the setting, below the axis.
    """
    method = rows["method"][0]
    ends = with_band(
        rows.filter((pl.col("metric") == "return") & (pl.col("task") == pl.col("task").max().over("run")))
        .group_by(dial, "seed")
        .agg(pl.col("value").mean())
        .group_by(dial)
        .agg(**MEAN_AND_ERROR)
    )
    values = ends[dial].unique().sort().to_list()
    base = alt.Chart(ends).encode(
        x=alt.X(f"{dial}:Q", title=name).scale(type="log", nice=False, padding=8).axis(format="~g", values=values),
        color=alt.value(COLOURS[method]),
    )
    y = alt.Scale(zero=axis_extent(ends)[0] == 0)
    rule = base.mark_rule().encode(y=alt.Y("low:Q", title="return at the end").scale(y), y2="high:Q")
    layered: alt.LayerChart = rule + base.mark_line(point=True).encode(y=alt.Y("mean:Q").scale(y))
    text = alt.Title(f"sensitivity of {title_of(method)}", anchor="start")
    return layered.properties(width=WIDTH, height=HEIGHT, title=text)


def _interquartile(rows: pl.DataFrame) -> pl.DataFrame:
    records = []
    returns = rows.filter(pl.col("metric") == "return")
    for (method, strength, step), group in returns.group_by("method", "strength", "step", maintain_order=True):
        strata = [of_problem["value"].to_numpy() for _, of_problem in group.group_by("problem", maintain_order=True)]
        low, high = bootstrap_interval(strata)
        mean = interquartile_mean(np.concatenate(strata))
        records.append((method, strength, step, mean, low, high, group["seed"].n_unique()))
    names = ["method", "strength", "step", "mean", "low", "high", "seeds"]
    return pl.DataFrame(records, schema=names, orient="row").sort("step", maintain_order=True)
