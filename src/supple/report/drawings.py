"""Charts as the page carries them: the drawing instructions once, the numbers in columns."""

import json
import math
from dataclasses import dataclass
from typing import Any

import altair as alt
import polars as pl

from supple.runs.charts import Lines, colour_scale, on_dark

DIGITS = 5
"""That count in a chart."""

REACH = 200
"""Square pixels around a point in which a finger or the mouse finds it."""

SHOWN = "!length(picked) || indexof(picked, datum.method) >= 0"


@dataclass(frozen=True)
class Figure:
    """A chart by its number, with what stands above it."""

    chart: int
    title: str


class Drawings:
    """All charts of a page.

    Args:
        methods: of the whole page: the place of each is the number of its colour.
    """

    def __init__(self, methods: list[str]) -> None:
        self._colours = {"domain": methods, "range": [f"var(--method-{place})" for place in range(len(methods))]}
        self._specs: dict[tuple[Any, ...], dict[str, Any]] = {}
        self._charts: list[dict[str, Any]] = []

    def add(self, lines: Lines, title: str) -> Figure:
        """Take in lines by method."""
        # Titles and colours aside, the instructions depend on no more; an axis of strengths has ticks of its own.
        strengths = tuple(lines.points["strength"].unique().sort()) if lines.at == "strength" else ()
        kind = (*lines.points.columns, lines.scale, *lines.within, *strengths)
        if kind not in self._specs:
            chart = lines.chart()
            chart.data = alt.NamedData("points")
            self._specs[kind] = self._for_the_page(chart.to_dict())
        columns = {column.name: _packed(column) for column in lines.points}
        self._charts.append({"spec": list(self._specs).index(kind), "length": len(lines.points), "columns": columns})
        return Figure(len(self._charts) - 1, title)

    def text(self) -> str:
        """JSON that may stand inside a page."""
        content = {"specs": list(self._specs.values()), "charts": self._charts}
        return json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")

    def _for_the_page(self, spec: dict[str, Any]) -> dict[str, Any]:
        """Without what the page itself says: titles, the legend (which also selects) and colours (dark or light)."""
        for name in ("title", "config", "data", "width", "height"):
            spec.pop(name, None)
        spec["params"] = [{"name": "picked", "value": []}]
        for layer in spec["layer"]:
            encoding = layer["encoding"]
            encoding["color"] |= {"legend": None, "scale": self._colours}
            (where_picked,) = encoding["opacity"]["condition"]
            encoding["opacity"]["condition"] = {"test": SHOWN, "value": where_picked["value"]}
            encoding["y"] |= {"title": None, "scale": encoding["y"]["scale"] | {"zero": False}}
            encoding["x"]["scale"] = encoding["x"].get("scale", {}) | {"nice": False}
        _, lines = spec["layer"]
        discs = {"type": "point", "filled": True, "size": REACH}
        unseen = lines["encoding"] | {"opacity": {"value": 0}}
        spec["layer"].append({"mark": discs, "encoding": unseen, "transform": [{"filter": SHOWN}]})
        del lines["encoding"]["tooltip"]
        return spec


def palette(methods: list[str]) -> list[tuple[str, str]]:
    """Each method's colour on a light and on a dark page."""
    return [(colour, on_dark(colour)) for colour in colour_scale(methods).range]


def _packed(column: pl.Series) -> Any:
    """One value where all are the same, words by their place in a list, numbers rounded."""
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
    """JSON has neither infinite numbers nor such that are none."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
