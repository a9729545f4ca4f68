"""Progress of many runs in a terminal."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Job = TypeVar("Job")


@contextmanager
def progress_of(jobs: Mapping[Job, tuple[str, float]]) -> Iterator[Callable[[Job, float], None]]:
    """Show a progress bar for each kind of job, and one for all jobs, while the block runs.

    Args:
        jobs: for each job, its kind and its amount of work.

    Yields:
        A function to call with a job and how much of it is done.
    """
    done = dict.fromkeys(jobs, 0.0)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("left:"), TimeRemainingColumn(), refresh_per_second=2) as progress:
        totals: dict[str, float] = {}
        for kind, amount in jobs.values():
            totals[kind] = totals.get(kind, 0) + amount
        bars = {kind: progress.add_task(kind, total=total) for kind, total in totals.items()}
        whole = progress.add_task("all", total=sum(totals.values()))

        def report(job: Job, amount: float) -> None:
            kind = jobs[job][0]
            progress.advance(bars[kind], amount - done[job])
            progress.advance(whole, amount - done[job])
            done[job] = amount

        yield report
