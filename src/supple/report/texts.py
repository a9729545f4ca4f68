"""Numbers as they stand on the page."""

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["duration", "number", "plain", "ranges", "setting", "signed"]


def number(value: float | None) -> str:
    """Three decimals, or a dash."""
    return "–" if value is None or math.isnan(value) else f"{value:.3f}"


def signed(value: float | None) -> str:
    """The same with its sign."""
    return "–" if value is None or math.isnan(value) else f"{value:+.3f}".replace("-", "−")


def plain(value: object) -> str:
    """As it would be typed, or a dash."""
    if value is None:
        return "–"
    return f"{value:g}" if isinstance(value, float) else str(value)


def setting(row: Mapping[str, Any], name: str) -> str:
    """The same of one of a row's settings: a dash where the method has no strength, or no options are given."""
    value = row[name]
    if name == "options":
        return (value or "{}").strip("{}").replace('"', "") or "–"
    return plain(value or None)


def duration(seconds: float | None) -> str:
    """Two units at most."""
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
    """Numbers that follow each other as first and last."""
    return ", ".join(f"{first}–{last}" if last > first else str(first) for first, last in stretches(numbers))


def stretches(numbers: list[int]) -> list[tuple[int, int]]:
    """The first and the last of each run of numbers that follow each other."""
    found: list[tuple[int, int]] = []
    for value in sorted(set(numbers)):
        if found and found[-1][1] == value - 1:
            found[-1] = (found[-1][0], value)
        else:
            found.append((value, value))
    return found
