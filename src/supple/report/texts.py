"""Numbers as they stand on the page."""

import math

__all__ = ["duration", "number", "plain", "ranges", "signed"]


def number(value: float | None) -> str:
    """Three decimals, or a dash."""
    return "–" if value is None or math.isnan(value) else f"{value:.3f}"


def signed(value: float | None) -> str:
    """The same with its sign."""
    return "–" if value is None or math.isnan(value) else f"{value:+.3f}".replace("-", "−")


def plain(value: object) -> str:
    """A setting as it would be typed."""
    if value is None or value == "{}":
        return "–"
    return f"{value:g}" if isinstance(value, float) else str(value)


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
