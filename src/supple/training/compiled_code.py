"""Compiled code: whether this machine can build it, and how to remove files that a killed process left incomplete."""

import re
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
Result = TypeVar("Result")

UNLOADABLE = re.compile(r"(/\S+\.so): ")
"""The file in the linker's message when a library can't be loaded, such as "file too short"."""


def retry_without_damaged_code(work: Callable[P, Result]) -> Callable[P, Result]:
    """``work``, called again if compiled code can't be loaded, after that code has been removed.

    ``torch.compile`` keeps its code in a folder that all processes share. A process that is killed while it compiles
    leaves a damaged file there, which torch never replaces. ``work`` must be able to begin again.
    """

    @wraps(work)
    def repeated(*args: P.args, **kwargs: P.kwargs) -> Result:
        removed = set[Path]()
        while True:
            try:
                return work(*args, **kwargs)
            except Exception as error:  # torch wraps the loader's error in its own
                damaged = _damaged(error)
                if damaged is None or damaged in removed:
                    raise
                removed.add(damaged)
                damaged.unlink(missing_ok=True)
            torch.compiler.reset()

    return repeated


def can_compile(device: str) -> bool:
    """Whether ``torch.compile`` works here: it needs a C++ compiler, or a GPU that Triton supports."""
    try:
        retry_without_damaged_code(torch.compile(lambda tensor: tensor + 1))(torch.zeros(1, device=device))
    except Exception:  # whatever is missing, training works without compiling
        return False
    return True


def _damaged(error: Exception) -> Path | None:
    """The file of compiled code that the error is about, if it is about one."""
    if not (found := UNLOADABLE.search(str(error))):
        return None
    from torch._inductor.runtime.cache_dir_utils import cache_dir  # costs seconds, and only this needs it

    path = Path(found[1])
    return path if path.is_relative_to(cache_dir()) else None
