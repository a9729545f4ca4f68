"""The paper's figures. Each is one file, ``figure_NN.py``, with its runs and its drawing: no other place names it."""

import ast
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from supple.figures.control import ControlFigure
    from supple.figures.figure import Figure
    from supple.figures.figure_06 import Example

FILES = {int(file.stem[-2:]): file for file in sorted(Path(__file__).parent.glob("figure_[0-9][0-9].py"))}
"""The file of each figure, by number."""


def find(number: int) -> "Figure | Example | ControlFigure":
    """The paper's figure with this number; no other figure is imported."""
    if number not in FILES:
        raise ValueError(f"expected a figure of the paper, got {number}: known are {', '.join(map(str, FILES))}")
    figure: Figure | Example | ControlFigure = import_module(f"{__name__}.{FILES[number].stem}").FIGURE
    return figure


def contents() -> dict[int, str]:
    """What each figure shows, from the first line of its file; no figure is imported, so this takes milliseconds."""
    lines = {number: ast.get_docstring(ast.parse(file.read_bytes())) or "" for number, file in FILES.items()}
    return {number: line.partition("\n")[0].partition(": ")[2] for number, line in lines.items()}
