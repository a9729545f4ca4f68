"""Pictures of runs: the same chart as PNG, SVG and an HTML page that works without a network."""

from pathlib import Path

import altair as alt
import polars as pl

from supple.runs.stats import by_task

# A method has the same colour everywhere. Those most often compared have Okabe and Ito's, the others Tol's muted ones:
# both palettes are made to be told apart by colour-blind readers.
COLOURS = {
    "none": "#000000",
    "l2": "#E69F00",
    "l2-init": "#56B4E9",
    "layer-norm": "#CC79A7",
    "crelu": "#F0E442",
    "wasserstein": "#009E73",
    "shrink-and-perturb": "#882255",
    "streaming-ewc": "#999933",
    "spectral-norm": "#44AA99",
    "spectral-normalization": "#6699CC",
    "parseval": "#AA4499",
    "upgd": "#DDCC77",
    "normalize-and-project": "#CC6677",
    "weight-clipping": "#117733",
    "hare-and-tortoise": "#888888",
    "redo": "#661100",
    "continual-backprop": "#332288",
    "self-normalized-resets": "#88CCEE",
    "network-reset": "#A0A000",
    "spectral": "#0072B2",
    "decoupled-spectral": "#D55E00",
}

TITLES = {
    "train_accuracy": "training accuracy at the task's end",
    "train_loss": "training loss at the task's end (nats)",
    "spectral_norm": "largest singular value, mean over layers",
    "weight_norm": "norm of all parameters",
}


def learning_curves(rows: pl.DataFrame, metric: str, title: str, subtitle: str = "") -> alt.LayerChart:
    """``metric`` over tasks, a line for each method: the mean over seeds, shaded by its standard error."""
    curves = by_task(rows, metric).with_columns(
        pl.col("task") + 1,
        low=pl.col("mean") - pl.col("error").fill_null(0),
        high=pl.col("mean") + pl.col("error").fill_null(0),
    )
    methods = curves["method"].unique(maintain_order=True).to_list()
    colour = alt.Color("method:N", sort=methods, legend=alt.Legend(title="method", symbolOpacity=1)).scale(
        domain=methods, range=[COLOURS[method] for method in methods]
    )
    picked = alt.selection_point(fields=["method"], bind="legend")
    shown = alt.when(picked)
    base = alt.Chart(curves).encode(x=alt.X("task:Q", title="task"), color=colour, detail="strength:N")
    band = base.mark_area(clip=True).encode(
        y=alt.Y("low:Q", title=TITLES[metric]),
        y2="high:Q",
        opacity=shown.then(alt.value(0.2)).otherwise(alt.value(0.02)),
    )
    line = base.mark_line(clip=True, point=True).encode(
        y="mean:Q",
        opacity=shown.then(alt.value(1)).otherwise(alt.value(0.08)),
        tooltip=[
            "method:N",
            alt.Tooltip("strength:Q", format="~g"),
            "task:Q",
            alt.Tooltip("mean:Q", format=".3f"),
            alt.Tooltip("error:Q", format=".3f", title="standard error"),
            "seeds:Q",
        ],
    )
    chart: alt.LayerChart = (
        (band + line)
        .add_params(picked)
        .properties(width=560, height=320, title=alt.Title(title, subtitle=subtitle, anchor="start"))
        .configure_axis(titleFontWeight="normal")
    )
    return chart


def save(chart: alt.LayerChart, folder: Path, name: str = "chart") -> list[Path]:
    """Write the chart as SVG, PNG (at double resolution) and HTML; return where."""
    folder.mkdir(parents=True, exist_ok=True)
    svg, png, html = (folder / f"{name}.{kind}" for kind in ("svg", "png", "html"))
    chart.save(svg)
    chart.save(png, scale_factor=2)
    chart.save(html, inline=True)  # the page carries its scripts along
    return [svg, png, html]
