"""What several error messages say alike."""

from collections.abc import Collection
from difflib import get_close_matches


def known(name: str, names: Collection[str], kind: str) -> str:
    """``name`` when it is among ``names``; otherwise a ValueError that suggests the nearest and lists them."""
    if name not in names:
        nearest = get_close_matches(name, names, n=1)
        hint = f"did you mean {nearest[0]!r}? " if nearest else ""
        shown = list(names) if len(names) <= 40 else [*list(names)[:40], "..."]
        raise ValueError(f"expected a {kind}, got {name!r}: {hint}known are {', '.join(shown)}")
    return name
