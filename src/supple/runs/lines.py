"""Charts of lines with bands, over tasks, strengths or steps: their data, and how they are drawn."""

import math
import re
import textwrap
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import altair as alt
import numpy as np
import polars as pl

from supple.runs import metrics
from supple.runs.colours import COLOURS, colour_scale, on_light, titled
from supple.runs.stats import by_task, over_tasks, varying, with_band
from supple.training.methods import title_of

TICK_WIDTH = 60
"""Pixels for each tick of the horizontal axis, about."""
TICKS = alt.ExprRef(f"ceil(width / {TICK_WIDTH})")
"""As many ticks as there is room for, in a chart without a size. Beside other charts, Vega-Lite has no such width."""

LEGEND_BELOW = {"orient": "bottom", "columns": alt.ExprRef("max(1, floor(width / 150))")}
"""Below the axes, so that the chart can be narrow; as many columns as there is room for."""

X_TITLES = {"step": "steps of the environment"}
"""Titles of the horizontal axis that are not the column's name."""

TITLE_LETTERS = 40
"""The most letters in one line of a title, so that it fits a phone."""

LABELLED_WIDTH = 400
"""From this width of the axes, in pixels, lines have their names at their ends."""

LABEL_HEIGHT = 15
"""Room for one of these names, in pixels."""

RULE = "#888888"
"""The colour of rules and their labels, visible on a light and on a dark page."""


@dataclass(frozen=True, kw_only=True)
class Lines:
    """The data of a chart of lines with bands. Altair's chart is built later, which takes a hundred times as long."""

    points: pl.DataFrame
    metric: str
    at: str
    """The horizontal axis: ``task``, ``strength`` or ``step``."""
    series: str
    """The setting that determines a line's colour."""
    coloured: tuple[Any, ...]
    """The values of ``series`` whose lines have a colour; the others are grey."""
    others: tuple[str, ...]
    """Other settings; every combination of their values has its own line."""
    within: tuple[str, ...] = ()
    """Those of ``others`` that differ within one colour: dashes tell lines of such a colour apart."""
    y_title: str | None = None
    """The vertical axis' title, if the metric's is not right."""
    changes: tuple[int, ...] = ()
    """Where the world changes, on the horizontal axis: these places have a numbered vertical rule."""

    @property
    def scale(self) -> Literal["linear", "symlog"]:
        """The scale of the vertical axis."""
        return metrics.find(self.metric).scale

    @property
    def values(self) -> list[Any]:
        """The values of ``series`` in the order of the legend: those with a colour first; methods as in their table."""
        values = self.points[self.series].unique(maintain_order=True).to_list()
        if self.series == "method":
            table = list(COLOURS)
            values.sort(key=lambda value: table.index(value) if value in table else len(table))
        else:
            values.sort(key=natural)
        return sorted(values, key=lambda value: value not in self.coloured)

    def sized(self, title: str, subtitle: str | list[str] = "", *, width: int, height: int) -> alt.LayerChart:
        """The chart with a title and a size; where there is room, the lines' names are at their ends."""
        has_room = width >= LABELLED_WIDTH and self.series == "method" and not self.within
        labels = self._labels(height) if has_room else None
        legend = LEGEND_BELOW if width >= LABELLED_WIDTH else {}
        heading = textwrap.wrap(title, TITLE_LETTERS) if len(title) > TITLE_LETTERS else title
        text = alt.Title(heading, subtitle=subtitle or alt.Undefined, anchor="start")
        ticks = math.ceil(width / TICK_WIDTH)
        return self.chart(labels, legend, ticks).properties(width=width, height=height, title=text)

    def chart(
        self,
        labels: pl.DataFrame | None = None,
        legend_options: Mapping[str, Any] = MappingProxyType({}),
        ticks: int | alt.ExprRef = TICKS,
    ) -> alt.LayerChart:
        """The chart, without a size and a title.

        Args:
            labels: the names at the lines' ends.
            legend_options: where the legend is.
            ticks: about how many the horizontal axis has.
        """
        values, points = self.values, self.points
        grey = [value for value in values if value not in self.coloured]
        if self.series == "method":
            colours = colour_scale(values, self.coloured)
        else:
            colours = alt.Scale(domain=values, scheme="viridis")
        titles_in_grey = [_titled(self.series, value) for value in grey]
        named = titles_in_grey if labels is not None else [_titled(self.series, value) for value in values]
        heading = words(self.series) if labels is None else "in grey"
        legend = alt.Legend(title=heading, symbolOpacity=1, values=named, labelLimit=0, **legend_options)
        picked = alt.selection_point(
            name=f"picked_{self.series}", fields=[self.series], on="click", bind="legend" if named else alt.Undefined
        )
        shown = alt.when(picked)
        detail = [f"{column}:N" for column in self.others]
        metric, x = metrics.find(self.metric), self._horizontal(ticks)
        title = f"{metric.title}, mean over tasks" if self.at == "strength" else self.y_title or metric.axis
        colour = alt.Color(f"{self.series}:N", legend=legend if named else None).scale(colours)
        dashes = {}
        if self.within:
            dash = alt.StrokeDash(
                "setting:N",
                scale=alt.Scale(domain=sorted(points["setting"].drop_nulls().unique(), key=natural)),
                title=" · ".join(map(words, self.within)),
                legend=alt.Legend(symbolType="stroke", symbolSize=400, labelLimit=0, **legend_options),
            )
            dashes["strokeDash"] = alt.when("isValid(datum.setting)").then(dash).otherwise(alt.value([1, 0]))
        every = alt.Chart().encode(x=x, color=colour, detail=detail)
        in_grey = alt.FieldOneOfPredicate(field=self.series, oneOf=titles_in_grey)
        base = every.transform_filter(~in_grey) if grey else every
        y_scale = alt.Scale(type=self.scale, zero=axis_extent(points)[0] == 0)
        band = base.mark_area().encode(
            y=alt.Y("low:Q", title=title).scale(y_scale),
            y2="high:Q",
            opacity=shown.then(alt.value(0.2)).otherwise(alt.value(0.02)),
        )
        line = base.mark_line(point=alt.OverlayMarkDef(size=20)).encode(
            **dashes,
            y=alt.Y("mean:Q").scale(y_scale),
            opacity=shown.then(alt.value(1)).otherwise(alt.value(0.08)),
            tooltip=self._tooltip(),
        )
        layers = [band, line]
        if grey:
            below = every.transform_filter(in_grey).mark_line(strokeWidth=1.5)
            layers.insert(0, below.encode(**{name: line.encoding[name] for name in ("y", "opacity", "tooltip")}))
        if labels is not None:
            names = alt.Chart(labels).mark_text(align="left", dx=12, fontSize=11)
            layers.append(names.encode(x=x, y="place:Q", text="label:N", color=alt.Color("colour:N", scale=None)))
        if self.changes:
            layers = [*self._rules(x), *layers]
        chart: alt.LayerChart = alt.LayerChart(data=titled(points), layer=layers).add_params(picked)
        return chart

    def _horizontal(self, ticks: int | alt.ExprRef) -> alt.X:
        """The horizontal axis."""
        x = alt.X(f"{self.at}:Q", title=X_TITLES.get(self.at, self.at))
        if self.at != "strength":
            whole = "datum.value % 1 ? '' : datum.label"  # between 1 and 2, Vega places ticks all the same
            return x.scale(zero=False, nice=False, padding=8).axis(
                tickMinStep=1, tickCount=ticks, format=",d", labelExpr=whole
            )
        strengths = self.points["strength"].unique().sort().to_list()
        return x.scale(type="log", nice=False, padding=8).axis(format="~g", values=strengths)

    def _rules(self, x: alt.X) -> tuple[alt.Chart, alt.Chart]:
        """A thin rule at every change, and its number above the axes."""
        labels = [f"change {number}" if number == 1 else f"{number}" for number in range(1, len(self.changes) + 1)]
        base = alt.Chart(pl.DataFrame({self.at: self.changes, "label": labels})).encode(x=x)
        text = base.mark_text(baseline="bottom", dy=-2, fontSize=9, color=RULE).encode(y=alt.value(0), text="label:N")
        return base.mark_rule(strokeWidth=0.75, strokeDash=[3, 3], color=RULE), text

    def _tooltip(self) -> list[Any]:
        """What a point tells."""
        has_error = "error" in self.points.columns
        return [
            alt.Tooltip(f"{self.series}:N", title=words(self.series)),
            *(alt.Tooltip(f"{column}:N", title=words(column)) for column in self.others),
            f"{self.at}:Q",
            alt.Tooltip("mean:Q", format=".3f"),
            *([alt.Tooltip("error:Q", format=".3f", title="standard error")] if has_error else []),
            "seeds:Q",
        ]

    def _labels(self, height: int) -> pl.DataFrame:
        """The titles of the methods with a colour, beside their lines' ends, far enough from each other to be read."""
        methods = [method for method in self.values if method in self.coloured]
        scale = colour_scale(methods)
        ink = dict(zip(methods, map(on_light, scale.range), strict=True))
        ends = (
            self.points.filter(pl.col("method").is_in(methods) & pl.col("mean").is_finite())
            .group_by("method")
            .agg(pl.col(self.at, "mean").sort_by(self.at).last())
            .sort("mean", "method")
        )
        bend, unbend = (np.arcsinh, np.sinh) if self.scale == "symlog" else (np.positive, np.positive)
        bottom, top = bend(np.array(axis_extent(self.points)))
        places = spaced(bend(ends["mean"].to_numpy()), (top - bottom) * LABEL_HEIGHT / height, bottom, top)
        return ends.select(
            self.at,
            pl.Series("place", unbend(places), dtype=pl.Float64),
            pl.col("method").replace_strict({method: title_of(method) for method in methods}).alias("label"),
            pl.col("method").replace_strict(ink).alias("colour"),
        )


def axis_extent(points: pl.DataFrame) -> tuple[float, float]:
    """The ends of the vertical axis: of the data; from zero on if they come near it and are nowhere negative."""
    finite = points.filter(pl.col("low").is_finite() & pl.col("high").is_finite())
    bottom, top = float(finite["low"].min() or 0.0), float(finite["high"].max() or 0.0)  # type: ignore[arg-type]  # numbers
    return (0.0, top) if 0 <= bottom <= top / 2 else (bottom, top)


def spaced(places: np.ndarray, gap: float, bottom: float, top: float) -> np.ndarray:
    """Ascending places between ``bottom`` and ``top``, moved as little as possible to be ``gap`` apart."""
    places = places.copy()
    for at in range(1, len(places)):
        places[at] = max(places[at], places[at - 1] + gap)
    if len(places):
        places[-1] = min(places[-1], max(top, bottom + gap * (len(places) - 1)))
    for at in reversed(range(len(places) - 1)):
        places[at] = min(places[at], places[at + 1] - gap)
    return places


def words(name: str) -> str:
    """The name of a column in words."""
    return name.replace("_", " ")


def natural(value: Any) -> list[Any]:
    """A key that sorts numbers by size, also those inside of words, and "default" first."""
    if not isinstance(value, str):
        return [value]
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", value)  # every other part is a number
    return [value != "default", *(float(part) if at % 2 else part for at, part in enumerate(parts))]


def lines_over_tasks(
    rows: pl.DataFrame, metric: str, series: str = "method", coloured: Collection[str] | None = None
) -> Lines:
    """The data of :func:`curves_of`; without ``coloured``, all lines have a colour."""
    means = by_task(rows, metric).with_columns(pl.col("task") + 1)
    others = [column for column in varying(rows) if column != series]
    return _lines(means, "task", metric, series, others, coloured)


def lines_over_strengths(
    rows: pl.DataFrame, metric: str, series: str = "method", coloured: Collection[str] | None = None
) -> Lines:
    """The data of :func:`sensitivity_of`; without ``coloured``, all lines have a colour."""
    means = over_tasks(rows, metric)
    dialled = means.filter(pl.col("strength") > 0)
    ends = pl.DataFrame({"strength": [dialled["strength"].min(), dialled["strength"].max()]})
    without = means.filter(pl.col("strength") == 0).join(dialled, on="method", how="anti", maintain_order="left")
    across = without.drop("strength").join(ends, how="cross").select(means.columns)
    others = [column for column in varying(rows) if column not in (series, "strength")]
    return _lines(pl.concat([across, dialled]), "strength", metric, series, others, coloured)


def _lines(
    means: pl.DataFrame, at: str, metric: str, series: str, others: list[str], coloured: Collection[str] | None
) -> Lines:
    if "options" in (series, *others):
        shown = pl.col("options").str.replace_all(r'[{}"]', "")
        means = means.with_columns(options=pl.when(shown == "").then(pl.lit("default")).otherwise(shown))
    points = with_band(means).select(*dict.fromkeys([series, *others, at, "mean", "error", "low", "high", "seeds"]))
    # Methods differ in their defaults: only a setting that differs within one colour needs dashes.
    within = [name for name in others if points.group_by(series).agg(pl.col(name).n_unique())[name].max() != 1]
    if {"method", "strength"} <= set(within):
        rest = [series, *(name for name in within if name != "strength")]
        if points.unique([*rest, "strength"]).height == points.unique(rest).height:  # a strength for each method
            within.remove("strength")
    if within:
        # The dashes' legend names only what differs within a colour; other lines are solid, without a value.
        tuples = [
            " · ".join(_text_of(name, value) for name, value in row.items())
            for row in points.select(within).rows(named=True)
        ]
        points = points.with_columns(pl.Series("setting", tuples)).with_columns(
            pl.when(pl.col("setting").n_unique().over(series) > 1).then("setting").alias("setting")
        )
    return Lines(
        points=points,
        metric=metric,
        at=at,
        series=series,
        coloured=tuple(points[series].unique(maintain_order=True) if coloured is None else coloured),
        others=tuple(others),
        within=tuple(within),
    )


def _titled(series: str, value: Any) -> Any:
    return title_of(value) if series == "method" else value


def _text_of(name: str, value: object) -> str:
    if name == "method":
        return title_of(str(value))
    return (f"{value:g}" if value else "none") if isinstance(value, float) else str(value)
