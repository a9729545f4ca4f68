"""Looks up names that users give, and writes helpful error messages."""

import math
import pkgutil
import sysconfig
import traceback
from collections.abc import Callable, Collection
from difflib import get_close_matches
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent


class LostWorkersError(RuntimeError):
    """Workers die one after the other, so the work makes no progress."""


class FailedWorkError(RuntimeError):
    """An error in a worker, as one sentence, because not every exception can be sent between processes."""


def sentence(error: BaseException) -> str:
    """An error in one line.

    The texts of supple's own errors and of OS errors stay unchanged. For any other exception the line names its type
    and the code that raised it: the user's own, if it is in the traceback, or else supple's.
    """
    text, own = " ".join(str(error).split()), own_frame(error)
    if is_written_for_users(error) or (isinstance(error, OSError) and not own):
        return text
    if isinstance(error, ImportError) and not own:
        return f"expected an installed package, got none ({text}): install it"
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if Path(frame.filename).is_relative_to(PACKAGE)]
    frame = own or (inside or frames)[-1]
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    remedy = "correct it there, --traceback shows the rest" if own else "report it with what --traceback shows"
    return f"expected no error in {frame.filename}:{frame.lineno} ({frame.name}), got {what}: {remedy}"


def is_written_for_users(error: BaseException) -> bool:
    """Whether the exception's own text is written for the user."""
    return isinstance(error, LostWorkersError | FailedWorkError) or (
        isinstance(error, Exception)
        and not isinstance(error, SyntaxError)
        and str(error).startswith("expected ")
        and "but got" not in str(error)  # torch has messages that begin as ours, and go on so
    )


def own_frame(error: BaseException) -> traceback.FrameSummary | None:
    """The last place in the user's own code in an exception's traceback, or None."""
    if isinstance(error, SyntaxError) and error.filename and _is_own(error.filename):
        return traceback.FrameSummary(error.filename, error.lineno, "<module>")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_own(frame.filename)]
    return frames[-1] if frames else None


def _is_own(filename: str) -> bool:
    path = Path(filename)
    installed = (Path(sysconfig.get_path(kind)) for kind in ("stdlib", "platstdlib", "purelib", "platlib"))
    return path.is_absolute() and not any(path.is_relative_to(folder) for folder in (PACKAGE, *installed))


def known(name: str, names: Collection[str], kind: str) -> str:
    """Return ``name`` if it is among ``names``; otherwise raise a ValueError with the nearest name and the list."""
    if name not in names:
        nearest = get_close_matches(str(name), names, n=1)  # a library user may pass any type
        hint = f"did you mean {nearest[0]!r}? " if nearest else ""
        shown = list(names) if len(names) <= 40 else [*list(names)[:40], "..."]
        article = "an" if kind[0] in "aeiou" else "a"
        raise ValueError(f"expected {article} {kind}, got {name!r}: {hint}known are {', '.join(shown)}")
    return name


def check_range(what: str, value: float, minimum: float, maximum: float = math.inf) -> None:
    """Check that a number is in its range."""
    if not (math.isfinite(value) and minimum <= value <= maximum):
        limits = f"from {minimum:,} to {maximum:,}" if maximum < math.inf else f"of at least {minimum:,}"
        raise ValueError(f"expected {what} {limits}, got {value:,}: choose another number")


def imported(name: str) -> Callable[..., Any]:
    """Import the function that ``package.module:function`` names."""
    try:
        function = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        if own_frame(error):  # the module exists, but has an error
            raise
        raise ValueError(
            f"expected package.module:function, got {name!r} ({error}): "
            "check the spelling, and put the folder that holds it on PYTHONPATH"
        ) from error
    if not callable(function):
        raise ValueError(f"expected a function, got {type(function).__name__} at {name!r}: name a function")
    made: Callable[..., Any] = function
    return made


def called(name: str) -> object:
    """Call the function that ``package.module:function`` names, without arguments, and return its result."""
    function = imported(name)
    try:
        return function()
    except TypeError as error:
        if own_frame(error):
            raise
        raise ValueError(
            f"expected a function that needs no arguments, got {name} ({error}): give it defaults"
        ) from error
