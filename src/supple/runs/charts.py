"""Charts of runs, saved as PNG, SVG, PDF and an HTML page that works offline."""

import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import altair as alt
import polars as pl

from supple.runs import metrics
from supple.runs.files import files_at, write
from supple.runs.stats import by_task, over_tasks, varying
from supple.training.methods import METHODS, title_of

Chart = TypeVar("Chart", alt.LayerChart, alt.VConcatChart)

COLOURS = {name: method.colour for name, method in METHODS.items()}

OTHER_COLOURS = ("#56565C", "#8C6D31", "#5254A3", "#AD494A", "#637939", "#A55194")
"""Colours of your own methods, assigned in the order in which the methods appear."""

DARK_PAGE = (0x14, 0x17, 0x1C)
"""The background of a dark page: red, green, blue."""


def on_dark(colour: str) -> str:
    """The colour for a dark page: mixed with white until the contrast is 4 to 1 (WCAG 2)."""
    if colour == "#000000":
        return "#FFFFFF"
    channels = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    for white in range(101):
        mixed = [round(channel + (255 - channel) * white / 100) for channel in channels]
        if (_luminance(mixed) + 0.05) / (_luminance(DARK_PAGE) + 0.05) >= 4:
            break
    return "#" + "".join(f"{channel:02X}" for channel in mixed)


def _luminance(channels: Sequence[int]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (byte / 255 for byte in channels)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def colour_scale(methods: list[str], colours: Mapping[str, str] = COLOURS) -> alt.Scale:
    """The colour scale of these methods, whose titles are drawn."""
    others = itertools.cycle(OTHER_COLOURS)
    titles = [title_of(method) for method in methods]
    return alt.Scale(domain=titles, range=[colours.get(method) or next(others) for method in methods])


def titled(points: pl.DataFrame) -> pl.DataFrame:
    """The data of a chart with the methods' titles in place of their names."""
    titles = {name: method.title for name, method in METHODS.items()}
    return points.with_columns(pl.col("^method$").replace(titles))


def learning_curves(rows: pl.DataFrame, metric: str, title: str, subtitle: str = "") -> alt.LayerChart:
    """``metric`` over tasks, a line for each setting: the mean over seeds, shaded by its standard error."""
    return configured(curves_of(rows, metric, title, subtitle))


def configured(chart: Chart) -> Chart:
    """The chart with the style that all charts share."""
    styled: Chart = chart.configure_axis(titleFontWeight="normal")
    return styled


def curves_of(
    rows: pl.DataFrame,
    metric: str,
    title: str,
    subtitle: str = "",
    *,
    series: str = "method",
    width: int = 560,
    height: int = 320,
) -> alt.LayerChart:
    """:func:`learning_curves` as a part of a larger chart.

    Args:
        rows: the measurements.
        metric: the metric to draw.
        title: above the axes.
        subtitle: below the title.
        series: the setting that determines a line's colour.
        width: of the axes, in pixels.
        height: of the axes, in pixels.
    """
    chart = lines_over_tasks(rows, metric, series).chart()
    return chart.properties(width=width, height=height, title=alt.Title(title, subtitle=subtitle, anchor="start"))


def sensitivity_of(
    rows: pl.DataFrame, metric: str, title: str, *, series: str = "method", width: int = 560, height: int = 320
) -> alt.LayerChart:
    """``metric``, mean over all tasks, against the strength; a method without strength is a horizontal line.

    If a method was tried at several strengths, zero is left out: the axis is logarithmic.
    """
    chart = lines_over_strengths(rows, metric, series).chart()
    return chart.properties(width=width, height=height, title=alt.Title(title, anchor="start"))


@dataclass(frozen=True, kw_only=True)
class Lines:
    """The data of a chart of lines with bands. Altair's chart is built later, which takes a hundred times as long."""

    points: pl.DataFrame
    metric: str
    at: str
    """The horizontal axis: ``task`` or ``strength``."""
    series: str
    """The setting that determines a line's colour."""
    others: tuple[str, ...]
    """Other settings; every combination of their values has its own line."""
    within: tuple[str, ...]
    """Those of ``others`` that differ within one colour: dashes tell their lines apart."""

    @property
    def scale(self) -> Literal["linear", "symlog"]:
        """The scale of the vertical axis."""
        return metrics.find(self.metric).scale

    def chart(self) -> alt.LayerChart:
        """The chart, without a size and a title."""
        values = self.points[self.series].unique(maintain_order=True).to_list()
        colours = colour_scale(values) if self.series == "method" else alt.Scale(domain=values, scheme="viridis")
        legend = alt.Legend(title=self.series, symbolOpacity=1)
        picked = alt.selection_point(name=f"picked_{self.series}", fields=[self.series], bind="legend")
        shown = alt.when(picked)
        detail = [f"{column}:N" for column in self.others]
        metric, x = metrics.find(self.metric), alt.X(f"{self.at}:Q", title=self.at)
        title = metric.axis
        if self.at == "strength":
            title = f"{metric.title}, mean over tasks"
            x = x.scale(type="log").axis(format="~e", values=self.points["strength"].unique().sort().to_list())
        else:
            x = x.axis(labelExpr="datum.value % 1 ? '' : format(datum.value, 'd')")  # label whole tasks only
        colour = alt.Color(f"{self.series}:N", legend=legend).scale(colours)
        dashes = {}
        if self.within:
            dashes["strokeDash"] = alt.StrokeDash(
                "setting:N",
                title=" · ".join(self.within).replace("_", " "),
                legend=alt.Legend(symbolType="stroke", symbolSize=400),
            )
        base = alt.Chart(titled(self.points)).encode(x=x, color=colour, detail=detail)
        band = base.mark_area(clip=True).encode(
            y=alt.Y("low:Q", title=title).scale(type=self.scale),
            y2="high:Q",
            opacity=shown.then(alt.value(0.2)).otherwise(alt.value(0.02)),
        )
        line = base.mark_line(clip=True, point=True).encode(
            **dashes,
            y=alt.Y("mean:Q").scale(type=self.scale),
            opacity=shown.then(alt.value(1)).otherwise(alt.value(0.08)),
            tooltip=[
                f"{self.series}:N",
                *detail,
                f"{self.at}:Q",
                alt.Tooltip("mean:Q", format=".3f"),
                alt.Tooltip("error:Q", format=".3f", title="standard error"),
                "seeds:Q",
            ],
        )
        chart: alt.LayerChart = (band + line).add_params(picked)
        return chart


def lines_over_tasks(rows: pl.DataFrame, metric: str, series: str = "method") -> Lines:
    """The data of :func:`curves_of`."""
    means = by_task(rows, metric).with_columns(pl.col("task") + 1)
    others = [column for column in varying(rows) if column != series]
    return _lines(means, "task", metric, series, others)


def lines_over_strengths(rows: pl.DataFrame, metric: str, series: str = "method") -> Lines:
    """The data of :func:`sensitivity_of`."""
    means = over_tasks(rows, metric)
    dialled = means.filter(pl.col("strength") > 0)
    ends = pl.DataFrame({"strength": [dialled["strength"].min(), dialled["strength"].max()]})
    without = means.filter(pl.col("strength") == 0).join(dialled, on="method", how="anti", maintain_order="left")
    across = without.drop("strength").join(ends, how="cross").select(means.columns)
    others = [column for column in varying(rows) if column not in (series, "strength")]
    return _lines(pl.concat([across, dialled]), "strength", metric, series, others)


def _lines(means: pl.DataFrame, at: str, metric: str, series: str, others: list[str]) -> Lines:
    if "options" in (series, *others):
        told = pl.col("options").str.replace_all(r'[{}"]', "")
        means = means.with_columns(options=pl.when(told == "").then(pl.lit("default")).otherwise(told))
    points = means.with_columns(
        low=pl.col("mean") - pl.col("error").fill_null(0), high=pl.col("mean") + pl.col("error").fill_null(0)
    ).select(*dict.fromkeys([series, *others, at, "mean", "error", "low", "high", "seeds"]))
    # Methods differ in their defaults: only a setting that differs within one colour needs dashes.
    within = [name for name in others if points.group_by(series).agg(pl.col(name).n_unique())[name].max() != 1]
    if within:
        settings = [" · ".join(_told(value) for value in row) for row in points.select(within).rows()]
        points = points.with_columns(pl.Series("setting", settings))
    return Lines(points=points, metric=metric, at=at, series=series, others=tuple(others), within=tuple(within))


def _told(value: object) -> str:
    return (f"{value:g}" if value else "-") if isinstance(value, float) else str(value)


def save(chart: Chart, folder: str | Path, name: str = "chart") -> list[str]:
    """Write the chart as SVG, PNG (at double resolution), PDF and HTML; return the paths."""
    files, root = files_at(str(folder))
    files.makedirs(root, exist_ok=True)
    svg, html, png, pdf = io.StringIO(), io.StringIO(), io.BytesIO(), io.BytesIO()
    chart.save(svg, "svg")
    chart.save(png, "png", scale_factor=2)
    chart.save(pdf, "pdf")
    chart.save(html, "html", inline=True)  # the page contains its scripts
    text = {f"{name}.svg": svg.getvalue().encode(), f"{name}.html": html.getvalue().encode()}
    written = text | {f"{name}.png": png.getvalue(), f"{name}.pdf": pdf.getvalue()}
    for file, content in written.items():
        write(files, f"{root}/{file}", content)
    return [f"{folder}/{file}" for file in written]
