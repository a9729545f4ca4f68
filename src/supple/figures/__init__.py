"""The paper's figures: one file per figure, with its runs and its drawing."""

from importlib import import_module

from supple.errors import known
from supple.figures.figure import Figure
from supple.figures.figure_06 import Example

NUMBERS = (1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)


def load(number: int) -> Figure | Example:
    """The paper's figure with this number."""
    known(str(number), [str(each) for each in NUMBERS], "figure of the paper")
    figure: Figure | Example = import_module(f"supple.figures.figure_{number:02}").FIGURE
    return figure
