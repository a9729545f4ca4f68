"""Formulas as MathML, which browsers show without JavaScript and without a network."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(?:span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</(?:span|div)>', re.DOTALL)


def on_page_content(content: str, **kwargs: Any) -> str:
    """MkDocs calls this with the HTML of each page."""
    return FORMULA.sub(
        lambda match: convert(html.unescape(match[2]).strip(), display="inline" if match[1] == "(" else "block"),
        content,
    )
