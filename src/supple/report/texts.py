"""Formats of numbers on the page."""

import math
from collections.abc import Mapping
from typing import Any

from supple.training.methods import options_text, strength_text

__all__ = ["duration", "number", "plain", "ranges", "setting", "signed"]


def number(value: float | None) -> str:
    """Three decimals, or a dash."""
    return "–" if value is None or math.isnan(value) else f"{value:.3f}"


def signed(value: float | None) -> str:
    """Three decimals with a sign, or a dash."""
    return "–" if value is None or math.isnan(value) else f"{value:+.3f}".replace("-", "−")


def plain(value: object) -> str:
    """The shortest form of a value, or a dash."""
    if value is None:
        return "–"
    return f"{value:g}" if isinstance(value, float) else str(value)


def setting(row: Mapping[str, Any], name: str) -> str:
    """One of a row's settings; a dash if the method has no strength, or no options are given."""
    value = row[name]
    if name == "options":
        return options_text(value or "") or "–"
    return strength_text(row["method"], value, "–") if name == "strength" else plain(value or None)


def duration(seconds: float | None) -> str:
    """A duration in at most two units."""
    if seconds is None:
        return "–"
    whole = round(seconds)
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"


def ranges(numbers: list[int]) -> str:
    """Numbers as text, with consecutive ones as ranges."""
    return ", ".join(f"{first}–{last}" if last > first else str(first) for first, last in consecutive_ranges(numbers))


def consecutive_ranges(numbers: list[int]) -> list[tuple[int, int]]:
    """The first and last number of each range of consecutive numbers."""
    pairs: list[tuple[int, int]] = []
    for value in sorted(set(numbers)):
        if pairs and pairs[-1][1] == value - 1:
            pairs[-1] = (pairs[-1][0], value)
        else:
            pairs.append((value, value))
    return pairs
