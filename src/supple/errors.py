"""Names that users give: what they stand for, or an error that helps."""

import pkgutil
from collections.abc import Callable, Collection
from difflib import get_close_matches
from typing import Any


class LostWorkersError(RuntimeError):
    """Workers die one after the other, and no work goes further."""


def known(name: str, names: Collection[str], kind: str) -> str:
    """``name`` when it is among ``names``; otherwise a ValueError that suggests the nearest and lists them."""
    if name not in names:
        nearest = get_close_matches(name, names, n=1)
        hint = f"did you mean {nearest[0]!r}? " if nearest else ""
        shown = list(names) if len(names) <= 40 else [*list(names)[:40], "..."]
        article = "an" if kind[0] in "aeiou" else "a"
        raise ValueError(f"expected {article} {kind}, got {name!r}: {hint}known are {', '.join(shown)}")
    return name


def imported(name: str) -> Callable[..., Any]:
    """The function that ``package.module:function`` names."""
    try:
        function = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"expected package.module:function, got {name!r} ({error}): "
            "check the spelling, and put the folder that holds it on PYTHONPATH"
        ) from error
    if not callable(function):
        raise ValueError(f"expected a function, got {type(function).__name__} at {name!r}: name a function")
    made: Callable[..., Any] = function
    return made
