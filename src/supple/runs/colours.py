"""The colours of methods in charts, on white and on dark pages."""

import itertools
from collections.abc import Collection, Sequence

import altair as alt
import polars as pl

from supple.training.methods import METHODS, title_of

# "resets" exists only for agents: it resets all networks of an agent.
COLOURS = {name: method.colour for name, method in METHODS.items()} | {"resets": METHODS["network-reset"].colour}

OTHER_COLOURS = ("#8C6D31", "#5254A3", "#AD494A", "#637939", "#A55194")
"""Colours of your own methods, assigned in the order in which the methods appear."""

GREY = "#C4C4C8"
"""The colour of the lines beyond the maximum number of coloured ones."""

DARK_PAGE = (0x14, 0x17, 0x1C)
"""The background of a dark page: red, green, blue."""


def on_dark(colour: str) -> str:
    """The colour for a dark page: mixed with white until the contrast is 4 to 1 (WCAG 2)."""
    return "#FFFFFF" if colour == "#000000" else _contrasting(colour, (255, 255, 255), DARK_PAGE)


def on_light(colour: str) -> str:
    """The colour for words on a white page: mixed with black until the contrast is 4 to 1 (WCAG 2)."""
    return _contrasting(colour, (0, 0, 0), (255, 255, 255))


def _contrasting(colour: str, added: Sequence[int], page: Sequence[int]) -> str:
    channels = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    for share in range(101):
        mixed = [round(own + (other - own) * share / 100) for own, other in zip(channels, added, strict=True)]
        dark, light = sorted((_luminance(mixed), _luminance(page)))
        if (light + 0.05) / (dark + 0.05) >= 4:
            break
    return "#" + "".join(f"{channel:02X}" for channel in mixed)


def _luminance(channels: Sequence[int]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (byte / 255 for byte in channels)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def colour_scale(methods: Sequence[str], coloured: Collection[str] | None = None) -> alt.Scale:
    """The colour scale of these methods, whose titles are drawn; if only some are to be coloured, others are grey."""
    others = itertools.cycle(OTHER_COLOURS)
    own = [COLOURS.get(method) or next(others) for method in methods]
    drawn = [
        colour if coloured is None or method in coloured else GREY for method, colour in zip(methods, own, strict=True)
    ]
    return alt.Scale(domain=[title_of(method) for method in methods], range=drawn)


def titled(points: pl.DataFrame) -> pl.DataFrame:
    """The data of a chart with the methods' titles in place of their names."""
    titles = {name: method.title for name, method in METHODS.items()}
    return points.with_columns(pl.col("^method$").replace(titles))
