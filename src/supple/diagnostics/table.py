"""Measurements as text."""

from collections.abc import Mapping

WIDTH = 100
"""The width of a table in characters."""
LAYER = 42
"""The maximum width of a layer's name in it."""


def text_table(values: Mapping[str, float]) -> str:
    """Values named ``name`` and ``name/layer`` as a table with one row per layer, in blocks of columns that fit.

    >>> print(text_table({"spectral_norm": 1.5, "spectral_norm/0": 2.0, "feature_rank": 7.0}))
              spectral    feature
                  norm       rank
    network        1.5          7
    0                2
    """
    if not values:
        return "nothing measured"
    layers = {key.partition("/")[2]: None for key in values}
    titles = {layer: _shortened(layer or "network") for layer in layers}
    left = max(map(len, titles.values()))
    blocks: list[list[str]] = [[]]
    for name in dict.fromkeys(key.partition("/")[0] for key in values):
        if left + sum(map(_width, [*blocks[-1], name])) > WIDTH:
            blocks.append([])
        blocks[-1].append(name)
    return "\n\n".join(_block(names, titles, left, values) for names in blocks)


def _block(names: list[str], titles: Mapping[str, str], left: int, values: Mapping[str, float]) -> str:
    words = [name.split("_") for name in names]
    height = max(map(len, words))
    padded = [[""] * (height - len(parts)) + parts for parts in words]
    rows = [("", heading) for heading in zip(*padded, strict=True)]
    for layer, title in titles.items():
        cells = [values.get(f"{name}/{layer}" if layer else name) for name in names]
        if any(cell is not None for cell in cells):
            rows.append((title, tuple("" if cell is None else f"{cell:.4g}" for cell in cells)))
    widths = [_width(name) for name in names]
    lines = (
        "".join([title.ljust(left), *(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))])
        for title, cells in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def _width(name: str) -> int:
    """The width of a column: room for a number such as 1.234e-05."""
    return 2 + max(9, *map(len, name.split("_")))


def _shortened(name: str) -> str:
    return name if len(name) <= LAYER else "…" + name[1 - LAYER :]
