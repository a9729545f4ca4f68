"""Pictures of runs: the same chart as PNG, SVG and an HTML page that works without a network."""

import io
import itertools
from pathlib import Path

import altair as alt
import fsspec
import polars as pl

from supple.runs.stats import by_task, varying

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

OTHER_COLOURS = ("#56565C", "#8C6D31", "#5254A3", "#AD494A", "#637939", "#A55194")
"""For methods of your own, in the order in which they come."""

TITLES = {
    "train_accuracy": "training accuracy at the task's end",
    "validation_accuracy": "validation accuracy at the task's end",
    "test_accuracy": "test accuracy at the task's end",
    "train_loss": "training loss at the task's end (nats)",
    "spectral_norm": "largest singular value, mean over layers",
    "weight_norm": "norm of all parameters",
    "diverged": "share of diverged networks",
}


def colour_scale(methods: list[str]) -> alt.Scale:
    """The methods in their colours."""
    others = itertools.cycle(OTHER_COLOURS)
    return alt.Scale(domain=methods, range=[COLOURS.get(method) or next(others) for method in methods])


def learning_curves(rows: pl.DataFrame, metric: str, title: str, subtitle: str = "") -> alt.LayerChart:
    """``metric`` over tasks, a line for each setting: the mean over seeds, shaded by its standard error."""
    others = [f"{column}:N" for column in varying(rows) if column != "method"]
    curves = by_task(rows, metric).with_columns(
        pl.col("task") + 1,
        low=pl.col("mean") - pl.col("error").fill_null(0),
        high=pl.col("mean") + pl.col("error").fill_null(0),
    )
    methods = curves["method"].unique(maintain_order=True).to_list()
    colour = alt.Color("method:N", sort=methods, legend=alt.Legend(title="method", symbolOpacity=1)).scale(
        colour_scale(methods)
    )
    picked = alt.selection_point(fields=["method"], bind="legend")
    shown = alt.when(picked)
    base = alt.Chart(curves).encode(x=alt.X("task:Q", title="task"), color=colour, detail=others)
    band = base.mark_area(clip=True).encode(
        y=alt.Y("low:Q", title=TITLES.get(metric, metric)),
        y2="high:Q",
        opacity=shown.then(alt.value(0.2)).otherwise(alt.value(0.02)),
    )
    line = base.mark_line(clip=True, point=True).encode(
        y="mean:Q",
        opacity=shown.then(alt.value(1)).otherwise(alt.value(0.08)),
        tooltip=[
            "method:N",
            *others,
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


def save(chart: alt.LayerChart, folder: str | Path, name: str = "chart") -> list[str]:
    """Write the chart as SVG, PNG (at double resolution) and HTML; return where."""
    files, root = fsspec.url_to_fs(str(folder))
    files.makedirs(root, exist_ok=True)
    svg, png, html = io.StringIO(), io.BytesIO(), io.StringIO()
    chart.save(svg, "svg")
    chart.save(png, "png", scale_factor=2)
    chart.save(html, "html", inline=True)  # the page carries its scripts along
    contents = {"svg": svg.getvalue().encode(), "png": png.getvalue(), "html": html.getvalue().encode()}
    for kind, content in contents.items():
        files.pipe_file(f"{root}/{name}.{kind}", content)
    return [f"{folder}/{name}.{kind}" for kind in contents]
