"""Charts of runs, saved as PNG, SVG, PDF and an HTML page that works offline."""

import contextlib
import io
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TypeVar

import altair as alt
import polars as pl

from supple.runs import metrics
from supple.runs.files import files_at, write
from supple.runs.lines import lines_over_strengths, lines_over_tasks
from supple.runs.stats import by_task, settings

Chart = TypeVar("Chart", alt.LayerChart, alt.VConcatChart)

MAX_COLOURS = 7
"""The maximum number of coloured lines in one chart."""


def configured(chart: Chart) -> Chart:
    """The chart with the style that all charts share."""
    styled: Chart = chart.configure_axis(titleFontWeight="normal")
    return styled


@contextlib.contextmanager
def shared_selections() -> Iterator[None]:
    """Silence Altair's warning that the panels joined here share one selection: that is intended."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Automatically deduplicated", UserWarning)
        yield


def over_seeds(count: int, most: int | None = None) -> str:
    """The subtitle that explains lines and bands: the number of seeds, or its range if lines differ.

    Args:
        count: the number of seeds of each line, or of the line with the fewest.
        most: the number of seeds of the line with the most; ``count`` when left out.
    """
    if most is None or most == count:
        return "one seed" if count == 1 else f"mean and standard error over {count} seeds"
    return f"mean and standard error over {count} to {most} seeds"


def curves_of(
    rows: pl.DataFrame,
    metric: str,
    title: str,
    subtitle: str | list[str] = "",
    *,
    series: str = "method",
    width: int = 560,
    height: int = 320,
    coloured: Collection[str] | None = None,
) -> alt.LayerChart:
    """``metric`` over tasks, a line for each setting: the mean over seeds, shaded by its standard error.

    Args:
        rows: the measurements.
        metric: the metric to draw.
        title: above the axes.
        subtitle: below the title.
        series: the setting that determines a line's colour.
        width: of the axes, in pixels.
        height: of the axes, in pixels.
        coloured: the methods whose lines have a colour; by default :func:`coloured_methods` chooses.
    """
    coloured = coloured_methods(rows) if coloured is None and series == "method" else coloured
    return lines_over_tasks(rows, metric, series, coloured).sized(title, subtitle, width=width, height=height)


def sensitivity_of(
    rows: pl.DataFrame,
    metric: str,
    title: str,
    *,
    series: str = "method",
    width: int = 560,
    height: int = 320,
    coloured: Collection[str] | None = None,
) -> alt.LayerChart:
    """``metric``, mean over all tasks, against the strength; a method without strength is a horizontal line.

    If a method was tried at several strengths, zero is left out: the axis is logarithmic.
    """
    coloured = coloured_methods(rows) if coloured is None and series == "method" else coloured
    return lines_over_strengths(rows, metric, series, coloured).sized(title, width=width, height=height)


def coloured_methods(rows: pl.DataFrame) -> list[str]:
    """The methods whose lines have a colour: all if they are few, else ``none`` and the best.

    "Best" is by the main metric in the last five tasks, not by the metric that is drawn, so that all panels about the
    same rows agree.
    """
    methods = rows["method"].unique(maintain_order=True).to_list()
    if len(methods) <= MAX_COLOURS:
        return methods
    main = next((name for name in metrics.HEADLINES if name in rows["metric"]), rows["metric"][0])
    late = by_task(rows, main).filter(pl.col("task") >= pl.col("tasks") - 5).fill_nan(None)
    means = late.group_by(name for name in settings(rows) if name != "tasks").agg(pl.col("mean").mean())
    best = means.sort("mean", "method", descending=metrics.find(main).higher_is_better is not False, nulls_last=True)
    return list(dict.fromkeys([*(method for method in methods if method == "none"), *best["method"]]))[:MAX_COLOURS]


def save(chart: Chart, folder: str | Path, name: str = "chart") -> list[str]:
    """Write the chart as SVG, PNG (at double resolution), PDF and HTML; return the paths."""
    files, root = files_at(str(folder))
    files.makedirs(root, exist_ok=True)
    chart = configured(chart)
    svg, html, png, pdf = io.StringIO(), io.StringIO(), io.BytesIO(), io.BytesIO()
    chart.save(svg, "svg")
    chart.save(png, "png", scale_factor=2)
    chart.save(pdf, "pdf")
    if isinstance(chart, alt.LayerChart):
        chart = chart.properties(width="container", autosize=alt.AutoSizeParams(type="fit-x", contains="padding"))
    chart.save(html, "html", inline=True)  # the page contains its scripts
    text = {f"{name}.svg": svg.getvalue().encode(), f"{name}.html": _page(html.getvalue()).encode()}
    written = text | {f"{name}.png": png.getvalue(), f"{name}.pdf": pdf.getvalue()}
    for file, content in written.items():
        write(files, f"{root}/{file}", content)
    return [f"{folder}/{file}" for file in written]


def _page(html: str) -> str:
    """Altair's page, fit for a phone: one chart is as wide as the window; panels keep their size and scroll."""
    style = "<style>body { margin: 0; padding: 8px; overflow-x: auto; }</style>"
    return html.replace(
        "<head>", f'<head><meta name="viewport" content="width=device-width, initial-scale=1">{style}', 1
    )
