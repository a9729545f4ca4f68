"""Charts of reinforcement learning from stored rows: returns over steps, aggregates over tasks, and sensitivity."""

import altair as alt
import numpy as np
import polars as pl

from supple.rl.methods import METHODS, find, usual_strength
from supple.rl.resets import Resets
from supple.runs import metrics
from supple.runs.charts import colour_scale
from supple.runs.stats import bootstrap_interval, interquartile_mean

METHOD_COLOURS = {name: method.colour for name, method in METHODS.items()}
INSIDE = ("overestimation", "critic_weight_norm", "critic_gradient_norm", "critic_spectral_norm")
"""The diagnostics of agents that figure 5 shows."""


def returns_over_steps(rows: pl.DataFrame, title: str, subtitle: str = "") -> alt.LayerChart:
    """Evaluation returns, a line for each method: the mean over seeds, shaded by its standard error."""
    return _dressed(_curves(_mean_and_error(with_steps(rows), "return"), "return"), title, subtitle)


def aggregate(rows: pl.DataFrame, title: str, subtitle: str = "", *, statistic: str = "iqm") -> alt.LayerChart:
    """Returns over steps, aggregated over all tasks.

    Args:
        rows: stored rows of several tasks, methods and seeds.
        title: of the chart.
        subtitle: below the title.
        statistic: ``iqm``, the interquartile mean over runs with its 95 % stratified bootstrap interval, or ``mean``,
            with the standard error over seeds of the mean over tasks.
    """
    rows = with_steps(rows)
    if statistic == "mean":
        returns = rows.filter(pl.col("metric") == "return")
        over_tasks = returns.group_by("method", "strength", "step", "seed", maintain_order=True).agg(
            pl.col("value").mean(), metric=pl.lit("return")
        )
        return _dressed(_curves(_mean_and_error(over_tasks, "return"), "mean return over tasks"), title, subtitle)
    return _dressed(_curves(_interquartile(rows), "interquartile mean of returns"), title, subtitle)


def figure_5(rows: pl.DataFrame, small_buffer: pl.DataFrame, title: str = "Figure 5") -> alt.VConcatChart:
    """Aggregate returns with a large and a small buffer, sensitivity to strength and reset frequency, and diagnostics.

    Args:
        rows: every run with the large buffer, of any strengths and reset frequencies.
        small_buffer: the same tasks and methods with the small buffer.
        title: of the chart; it should name the scale of the runs.
    """
    middle = _sensitivity(rows, "spectral", "strength", "strength of spectral regularization")
    below = _sensitivity(_with_periods(rows), "resets", "reset_every", "updates from one reset to the next")
    panels = [
        aggregate(_defaults(rows), "buffer of " + _capacity(rows)),
        middle,
        aggregate(_defaults(small_buffer), "buffer of " + _capacity(small_buffer)),
        below,
    ]
    inside = [
        _dressed(_curves(_mean_and_error(with_steps(_defaults(rows)), name), title), title)
        for name, title in ((name, metrics.find(name).title) for name in INSIDE)
        if (rows["metric"] == name).any()
    ]
    lines = [alt.hconcat(*each) for each in (panels[:2], panels[2:], inside[:2], inside[2:]) if each]
    figure: alt.VConcatChart = alt.vconcat(*lines).properties(title=alt.Title(title, anchor="start"))
    return figure


def figure_16(rows: pl.DataFrame, title: str = "Figure 16", columns: int = 3) -> alt.VConcatChart:
    """Returns over steps, a panel for each task: mean and standard error over seeds."""
    names = rows["problem"].unique(maintain_order=True).to_list()
    panels = [returns_over_steps(_defaults(rows.filter(pl.col("problem") == name)), name) for name in names]
    lines = [alt.hconcat(*panels[start : start + columns]) for start in range(0, len(panels), columns)]
    figure: alt.VConcatChart = alt.vconcat(*lines).properties(title=alt.Title(title, anchor="start"))
    return figure


def with_steps(rows: pl.DataFrame) -> pl.DataFrame:
    """Stored rows with a column ``step``: the environment steps taken before each evaluation."""
    return rows.with_columns(step=pl.min_horizontal((pl.col("task") + 1) * pl.col("evaluate_every"), pl.col("steps")))


def _mean_and_error(rows: pl.DataFrame, metric: str) -> pl.DataFrame:
    value = pl.col("value")
    error = (value.std() / value.len().sqrt()).fill_null(0)
    return (
        rows.filter(pl.col("metric") == metric)
        .group_by("method", "strength", "step", maintain_order=True)
        .agg(mean=value.mean(), low=value.mean() - error, high=value.mean() + error, seeds=value.len())
        .sort("step", maintain_order=True)
    )


def _interquartile(rows: pl.DataFrame) -> pl.DataFrame:
    found = []
    returns = rows.filter(pl.col("metric") == "return")
    for (method, strength, step), group in returns.group_by("method", "strength", "step", maintain_order=True):
        strata = [each["value"].to_numpy() for _, each in group.group_by("problem", maintain_order=True)]
        low, high = bootstrap_interval(strata)
        mean = interquartile_mean(np.concatenate(strata))
        found.append((method, strength, step, mean, low, high, len(group)))
    names = ["method", "strength", "step", "mean", "low", "high", "seeds"]
    return pl.DataFrame(found, schema=names, orient="row").sort("step", maintain_order=True)


def _curves(curves: pl.DataFrame, name: str) -> alt.LayerChart:
    methods = curves["method"].unique(maintain_order=True).to_list()
    legend, scale = alt.Legend(title="method", symbolOpacity=1), colour_scale(methods, METHOD_COLOURS)
    base = alt.Chart(curves).encode(
        x=alt.X("step:Q", title="steps of the environment"),
        color=alt.Color("method:N", sort=methods, legend=legend, scale=scale),
        detail="strength:N",
    )
    band = base.mark_area(opacity=0.2, clip=True).encode(y=alt.Y("low:Q", title=name), y2="high:Q")
    line = base.mark_line(clip=True, point=True).encode(
        y="mean:Q",
        tooltip=["method:N", alt.Tooltip("strength:Q", format="~g"), "step:Q", alt.Tooltip("mean:Q", format=".1f")],
    )
    layered: alt.LayerChart = band + line
    return layered


def _sensitivity(rows: pl.DataFrame, method: str, dial: str, name: str) -> alt.LayerChart:
    """The final return against one option (``dial``): mean and standard error over tasks and seeds."""
    value = pl.col("value")
    chosen = rows.filter((pl.col("metric") == "return") & (pl.col("method") == method))
    ends = (
        chosen.filter(pl.col("task") == pl.col("task").max().over("run"))
        .group_by(dial)
        .agg(mean=value.mean(), error=(value.std() / value.len().sqrt()).fill_null(0))
        .with_columns(low=pl.col("mean") - pl.col("error"), high=pl.col("mean") + pl.col("error"))
    )
    base = alt.Chart(ends).encode(
        x=alt.X(f"{dial}:Q", title=name).scale(type="log"), color=alt.value(METHOD_COLOURS[method])
    )
    rule = base.mark_rule().encode(y=alt.Y("low:Q", title="return at the end"), y2="high:Q")
    return _dressed(rule + base.mark_line(point=True).encode(y="mean:Q"), f"sensitivity of {method}")


def _defaults(rows: pl.DataFrame) -> pl.DataFrame:
    """Keep, for each method, the strength and options that most agents have; the default ones if there is a tie."""
    dials = ["method", "strength", "options"]
    usual = {name: usual_strength(find(name)) for name in rows["method"].unique()}
    strength = pl.col("method").replace_strict(usual, return_dtype=pl.Float64)
    best = (
        rows.group_by(dials, maintain_order=True)
        .agg(agents=pl.struct("run", "seed").n_unique())
        .with_columns(usual=(pl.col("strength") == strength) & (pl.col("options") == "{}"))
        .sort("agents", "usual", descending=True, maintain_order=True)
    )
    return rows.join(best.unique("method", keep="first", maintain_order=True), on=dials, how="semi")


def _with_periods(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows with a column ``reset_every``, read from the options of the method ``resets``."""
    every = pl.col("options").str.json_path_match("$.every").cast(pl.Int64)
    return rows.with_columns(reset_every=every.fill_null(Resets().every))


def _capacity(rows: pl.DataFrame) -> str:
    return " and ".join(f"{value:,}" for value in rows["capacity"].unique().sort())


def _dressed(chart: alt.LayerChart, title: str, subtitle: str = "") -> alt.LayerChart:
    text = alt.Title(title, subtitle=subtitle or alt.Undefined, anchor="start")
    dressed: alt.LayerChart = chart.properties(width=480, height=280, title=text)
    return dressed
