"""Docstrings as the documentation site wants them: their reStructuredText roles, formulas and doctests in Markdown."""

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|attr|data|mod):`~?([^`]+)`")
MATH = re.compile(r":math:`([^`]+)`")
DISPLAY = re.compile(r"^\.\. math:: ?(.*(?:\n(?=[ \t]).+)*)", re.MULTILINE)
DOCTEST = re.compile(r"(?:^>>> .*\n?(?:^(?!\s*$).*\n?)*)", re.MULTILINE)
TABLE = re.compile(r"^(=+(?: +=+)+)\n(.*)\n\1\n((?:.*\n)*?)\1$", re.MULTILINE)


def in_markdown(text: str) -> str:
    """The same docstring in Markdown."""
    text = TABLE.sub(_table, text)
    text = ROLE.sub(r"`\1`", text)
    text = MATH.sub(r"$\1$", text)
    text = DISPLAY.sub(lambda found: f"$$\n{found[1].strip()}\n$$", text)
    text = text.replace("``", "`")
    return DOCTEST.sub(lambda found: f"```pycon\n{found[0].rstrip()}\n```\n", text)


def _table(found: re.Match[str]) -> str:
    """A simple table, whose columns begin where its rules do; a row without a first cell goes on with the last."""
    starts = [rule.start() for rule in re.finditer("=+", found[1])]
    bounds = list(zip(starts, [*starts[1:], None], strict=True))
    rows: list[list[str]] = []
    for line in [found[2], *found[3].splitlines()]:
        cells = [line[start:end].strip().replace("|", "\\|") for start, end in bounds]
        if cells[0]:
            rows.append(cells)
        else:
            rows[-1] = [f"{cell} {more}".strip() for cell, more in zip(rows[-1], cells, strict=True)]
    rows.insert(1, ["---"] * len(starts))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


class Docstrings(griffe.Extension):
    """Turns every docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = in_markdown(obj.docstring.value)
