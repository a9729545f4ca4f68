"""The page's charts in compact form: every Vega-Lite specification once, the numbers in columns."""

import json
import math
from dataclasses import dataclass
from typing import Any

import altair as alt
import polars as pl

from supple.runs.colours import colour_scale, on_dark, titled
from supple.runs.lines import Lines
from supple.training.methods import title_of

DIGITS = 5
"""Significant digits of a chart's numbers."""

REACH = 200
"""Area around a point, in square pixels, that reacts to a finger or the mouse."""

SHOWN = "!length(picked) || indexof(picked, datum.method) >= 0"


@dataclass(frozen=True)
class ChartEntry:
    """The index of a chart on the page, and the title above it."""

    chart: int
    title: str


class Drawings:
    """All charts of a page.

    Args:
        methods: of the whole page; a method's index is that of its colour.
    """

    def __init__(self, methods: list[str]) -> None:
        self._colours = {
            "domain": [title_of(method) for method in methods],
            "range": [f"var(--method-{place})" for place in range(len(methods))],
        }
        self._specs: dict[tuple[Any, ...], dict[str, Any]] = {}
        self._charts: list[dict[str, Any]] = []

    def add(self, lines: Lines, title: str) -> ChartEntry:
        """Add a chart of lines coloured by method."""
        # Apart from titles and colours, a specification depends only on this: a strength axis has its own ticks, dashes
        # have their own legend.
        named = ("strength",) * (lines.at == "strength") + ("setting",) * bool(lines.within)
        values = (tuple(lines.points[name].drop_nulls().unique().sort()) for name in named)
        kind = (*lines.points.columns, lines.scale, *lines.within, *values, lines.changes)
        if kind not in self._specs:
            chart = lines.chart()
            chart.data = alt.NamedData("points")
            self._specs[kind] = self._for_the_page(chart.to_dict())
        columns = {column.name: _packed(column) for column in titled(lines.points)}
        self._charts.append({"spec": list(self._specs).index(kind), "length": len(lines.points), "columns": columns})
        return ChartEntry(len(self._charts) - 1, title)

    def text(self) -> str:
        """All charts as JSON that is safe inside an HTML page."""
        content = {"specs": list(self._specs.values()), "charts": self._charts}
        return json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")

    def _for_the_page(self, spec: dict[str, Any]) -> dict[str, Any]:
        """Remove what the page itself provides: titles, the legend (which also selects methods) and colours."""
        for name in ("title", "config", "data", "width", "height"):
            spec.pop(name, None)
        spec["params"] = [{"name": "picked", "value": []}]
        *rules, band, line = spec["layer"]
        for layer in (band, line):
            encoding = layer["encoding"]
            encoding["color"] |= {"legend": None, "scale": self._colours}
            (where_picked,) = encoding["opacity"]["condition"]
            encoding["opacity"]["condition"] = {"test": SHOWN, "value": where_picked["value"]}
            encoding["y"] |= {"title": None, "scale": encoding["y"]["scale"] | {"zero": False}}
            encoding["x"]["scale"] = encoding["x"].get("scale", {}) | {"nice": False}
        discs = {"type": "point", "filled": True, "size": REACH}
        unseen = line["encoding"] | {"opacity": {"value": 0}}
        spec["layer"].append({"mark": discs, "encoding": unseen, "transform": [{"filter": SHOWN}]})
        del line["encoding"]["tooltip"]
        for rule in rules:
            rule["encoding"]["x"] = line["encoding"]["x"]
        return spec


def palette(methods: list[str]) -> list[tuple[str, str]]:
    """Each method's colour on a light and on a dark page."""
    return [(colour, on_dark(colour)) for colour in colour_scale(methods).range]


def _packed(column: pl.Series) -> Any:
    """A column in short form: one value if all are equal, words as indices into a list, numbers rounded."""
    if column.dtype.is_float():
        column = column.round_sig_figs(DIGITS)
    if column.n_unique() == 1:
        return _value(column[0])
    if column.dtype == pl.String:
        words = column.unique(maintain_order=True)
        places = {word: place for place, word in enumerate(words)}
        return {"words": words.to_list(), "places": [places[word] for word in column]}
    return [_value(value) for value in column]


def _value(value: Any) -> Any:
    """None for infinity and NaN, which JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
