"""Progress of many runs: bars in a terminal, and a line every half minute in a log."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Job = TypeVar("Job")

EVERY = 30.0
"""Seconds between two lines where the output is no terminal."""


@contextmanager
def progress_of(jobs: Mapping[Job, tuple[str, float]]) -> Iterator[Callable[[Job, float], None]]:
    """Show the progress of all jobs while the block runs.

    In a terminal, a bar for each kind of job and one for all; elsewhere, as in the log of a cluster's job, a line every
    half minute and one at the end.

    Args:
        jobs: for each job, its kind and its amount of work.

    Yields:
        A function to call with a job and how much of it is done.
    """
    console = Console()
    with _bars(jobs, console) if console.is_terminal else _lines(jobs, console) as report:
        yield report


@contextmanager
def _bars(jobs: Mapping[Job, tuple[str, float]], console: Console) -> Iterator[Callable[[Job, float], None]]:
    done: dict[Job, float] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    remaining = (TextColumn("left:"), TimeRemainingColumn())
    with Progress(*columns, *remaining, console=console, refresh_per_second=2) as progress:
        totals: dict[str, float] = {}
        for kind, amount in jobs.values():
            totals[kind] = totals.get(kind, 0) + amount
        bars = {kind: progress.add_task(kind, total=total) for kind, total in totals.items()}
        whole = progress.add_task("all", total=sum(totals.values()))

        def report(job: Job, amount: float) -> None:
            for bar in (bars[jobs[job][0]], whole):
                if job in done:
                    progress.advance(bar, amount - done[job])
                else:
                    progress.tasks[bar].completed += amount  # done earlier: it does not count for the speed
            done[job] = amount

        yield report
        all_jobs = progress.tasks[whole]
        all_jobs.finished_time = all_jobs.elapsed  # not that of the last report: results are written after it


@contextmanager
def _lines(jobs: Mapping[Job, tuple[str, float]], console: Console) -> Iterator[Callable[[Job, float], None]]:
    done, total, began = dict.fromkeys(jobs, 0.0), sum(amount for _, amount in jobs.values()), time.monotonic()
    ended, runs = threading.Event(), f"{len(done)} run{'s'[: len(done) != 1]}"
    before: dict[Job, float] = {}
    """By job, the work that was done before this process started; it does not count for the speed."""

    def report(job: Job, amount: float) -> None:
        before.setdefault(job, amount)
        done[job] = amount

    def line() -> None:
        amount, seconds = sum([*done.values()]), time.monotonic() - began
        new, share = amount - sum([*before.values()]), amount / total if total else 1.0
        left = ""
        if new > 0 and share < 1:
            left = f", about {timedelta(seconds=round(seconds / new * (total - amount)))} left"
        text = f"progress: {share:.0%} of {runs} after {timedelta(seconds=round(seconds))}{left}"
        console.print(text, highlight=False, soft_wrap=True)

    def follow() -> None:
        while not ended.wait(EVERY):
            line()

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        yield report
    finally:
        ended.set()
        follower.join()
        line()
