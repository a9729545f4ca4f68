"""The loop that resumes a run: it locks the folder, loads the checkpoint, and saves a new one after each part."""

import math
import time
import warnings
from collections.abc import Callable
from typing import Any, Protocol

import polars as pl

from supple.runs.folder import Checkpoint, RunFolder
from supple.runs.store import NO_ROWS
from supple.training.compiled_code import retry_without_damaged_code
from supple.training.precision import flushed_denormals

Report = Callable[[float], None]


class ChangedDataError(ValueError):
    """The data differ from those that a checkpoint was written with, so the run cannot continue from it."""


class Work(Protocol):
    """Training in parts. A part is a task, or the steps up to the next evaluation; it ends with a measurement."""

    @property
    def facts(self) -> dict[str, Any]:
        """Entries for the environment file."""

    def learn(self, part: int, report: Report) -> pl.DataFrame:
        """Train one part and return the measurements at its end, in the store's schema."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next part depends on."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned.

        Raises:
            ChangedDataError: if the data have changed; the work is then unchanged.
        """


@retry_without_damaged_code
def work_on(
    folder: RunFolder,
    parts: int,
    start: Callable[[], Work],
    report: Report,
    *,
    amount: Callable[[int], float] = float,
    calls: int = 1,
    keep: int | None = None,
) -> bool:
    """Train the remaining parts of a run, and save them in its folder.

    Args:
        folder: the run's folder.
        parts: the number of parts of the whole run.
        start: builds the work in its initial state; called after this process has locked the folder.
        report: called from time to time with the amount of work done so far.
        amount: gives the amount of work done after a number of parts.
        calls: the number of calls that train a whole run; with several, runs can share workers.
        keep: keep a checkpoint after every ``keep`` parts; only the last when left out.

    Returns:
        Whether parts are left.
    """
    with folder.locked(), flushed_denormals() as flushed:
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
                warnings.warn(f"{error}, in {folder.path}: the run restarts", stacklevel=2)
                folder.forget()
        report(amount(finished))
        end = min(parts, finished + math.ceil(parts / calls))
        for part in range(finished, end):
            began = time.monotonic()
            rows = pl.concat([rows, work.learn(part, report)])
            seconds += time.monotonic() - began
            kept = keep is not None and (part + 1) % keep == 0
            folder.save(Checkpoint(part + 1, work.state_dict(), rows, seconds), keep=kept)
            report(amount(part + 1))
    return end < parts
