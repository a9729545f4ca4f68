"""Functions that tests name as ``package.module:function``, or that run in processes of their own."""

import os
import sys
import time
from pathlib import Path

import torch

from supple.runs.sweep import work_through

MALLOC = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")


class UnluckyError(Exception):
    """Its own type, so that a test can tell that it arrives as what it is."""


def notes(job, report):
    """Report two halves, and leave a file that says under which conditions."""
    folder, name = job
    report(0.5)
    environment = [os.environ.get(variable) for variable in MALLOC]
    Path(folder, name).write_text(repr((os.getpid(), torch.get_num_threads(), environment)))
    report(1.0)


def fails_first(job, report):
    folder, name = job
    if name == "0":
        raise UnluckyError("no luck today")
    time.sleep(0.2)
    Path(folder, name).touch()


def in_pieces(job, report):
    """Adds one line a piece to its file, and has three of them."""
    path = Path(*job)
    lines = [*path.read_text().splitlines(), "piece"] if path.exists() else ["piece"]
    path.write_text("\n".join(lines))
    report(len(lines))
    return len(lines) < 3


def fails_beside_long_work(job, report):
    if job[0] == 0:
        time.sleep(1)  # until the other one has begun
        raise UnluckyError("no luck today")
    time.sleep(60)


def reports_a_lot(job, report):
    for step in range(5000):
        report(step + 1)


def in_its_own_process(name):
    """Two jobs with two workers; prints how much was done of each."""
    done = {(number, "a job as long as a run's configuration " * 20): 0.0 for number in range(2)}
    try:
        work_through(done, globals()[name], workers=2, report=done.__setitem__)
    except UnluckyError as error:
        print("error:", error)
    print(list(done.values()))


def rolled_labels(data, seed, task):
    """A shift: each task, every label is the next one."""
    from supple.lab.shifts import Task

    return Task(classes=torch.arange(data.classes).roll(task))


if __name__ == "__main__":
    in_its_own_process(sys.argv[1])
