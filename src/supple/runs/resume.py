"""The loop that resumes: it holds a run's folder, loads the checkpoint, and saves one after each part."""

import math
import time
import warnings
from collections.abc import Callable
from typing import Any, Protocol

import polars as pl
import torch

from supple.runs.folder import Checkpoint, RunFolder
from supple.runs.store import NO_ROWS

Report = Callable[[float], None]


class ChangedDataError(ValueError):
    """What a checkpoint was written with is not what is here now, so that the run cannot continue from it."""


class Work(Protocol):
    """What is trained in parts, each of which ends with a measurement: a task, or the way to the next evaluation."""

    @property
    def facts(self) -> dict[str, Any]:
        """What the environment file is to say of it."""

    def learn(self, part: int, report: Report) -> pl.DataFrame:
        """Train one part to its end and return what was measured there, in the store's schema."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next part depends on."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned.

        Raises:
            ChangedDataError: when that is not possible; nothing is changed then.
        """


def work_on(
    folder: RunFolder,
    parts: int,
    start: Callable[[], Work],
    report: Report,
    *,
    amount: Callable[[int], float] = float,
    calls: int = 1,
) -> bool:
    """Train what is left of a run in its folder.

    Args:
        folder: the run's.
        parts: how many there are to the end.
        start: builds the work as it is before its first part, once the folder is this process's alone.
        report: told every now and then how much is done,
        amount: which is this after so many parts.
        calls: how many calls it takes to the end; for sharing workers between runs.

    Returns:
        Whether parts are left.
    """
    # Weights driven towards zero become subnormal numbers, which make a step ten times slower: they count as zero.
    flushed = torch.set_flush_denormal(True)
    with folder.locked():
        if folder.finished(parts):  # by another process, while this one waited
            report(amount(parts))
            return False
        work = start()
        checkpoint = folder.begin(flush_denormal=flushed, **work.facts)
        finished, rows, seconds = 0, NO_ROWS, 0.0
        if checkpoint:
            try:
                work.load_state_dict(checkpoint.state)
                finished, rows, seconds = checkpoint.finished, checkpoint.rows, checkpoint.seconds
            except ChangedDataError as error:
                warnings.warn(f"{error}, in {folder.path}: the run starts again", stacklevel=2)
                folder.forget()
        end = min(parts, finished + math.ceil(parts / calls))
        for part in range(finished, end):
            began = time.monotonic()
            rows = pl.concat([rows, work.learn(part, report)])
            seconds += time.monotonic() - began
            folder.save(Checkpoint(part + 1, work.state_dict(), rows, seconds))
            report(amount(part + 1))
    return end < parts
