"""Jobs that tests hand to worker processes: some fail, and some kill the process that they run in."""

import gc
import os
import re
import signal
import sys
import time
from pathlib import Path

import torch

from supple.errors import FailedWorkError
from supple.runs.sweep import work_through

MALLOC = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")


class UnluckyError(Exception):
    """One that can't be sent to another process."""

    def __init__(self, luck, day) -> None:
        super().__init__(f"{luck} {day}")


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
        raise UnluckyError("no luck", "today")
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
    _, name = job
    if name == "0":
        time.sleep(1)  # until the other one has begun
        raise UnluckyError("no luck", "today")
    time.sleep(600)


def reports_a_lot(job, report):
    for step in range(5000):
        report(step + 1)


def waits(job, report):
    """Leaves its process's number, and never ends."""
    path = Path(*job)
    path.with_suffix(".part").write_text(str(os.getpid()))
    path.with_suffix(".part").rename(path)
    time.sleep(600)


def dies():
    """As the kernel ends a process that takes too much memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def dies_once(job, report):
    """Half of it is done when it is killed."""
    path = Path(*job)
    report(0.5)
    if not path.exists():
        path.touch()
        dies()
    report(1.0)


def dies_always(job, report):
    Path(*job).with_suffix(f".{os.getpid()}").touch()
    dies()


def dies_after_each_step(job, report):
    """Three steps, and a new process for each."""
    path = Path(*job)
    steps = int(path.read_text()) + 1 if path.exists() else 1
    path.write_text(str(steps))
    report(steps)
    if steps < 3:
        dies()


def training_that_dies(run, report, *, root):
    """:func:`supple.lab.trainer.train`, killed once in the middle of its second task."""
    from supple.lab.trainer import train

    marker = Path(root, f"died.{run.method}")

    def report_and_die(tasks):
        report(tasks)
        if tasks > 1 and not marker.exists():
            marker.touch()
            dies()

    return train(run, report_and_die, root=root, pieces=2)


def in_its_own_process(name, folder):
    """Two jobs with two workers; prints how much was done of each."""
    done = {(folder, str(number)): 0.0 for number in range(2)}
    try:
        work_through(done, globals()[name], workers=2, report=done.__setitem__)
    except FailedWorkError as error:
        print(re.sub("expected .*worker_jobs.py:[0-9]+ |: correct it .*", "", str(error)))
    print(list(done.values()))


if __name__ == "__main__":
    in_its_own_process(*sys.argv[1:])


class Cycle:
    """Refers to itself, as networks with hooks do: only Python's garbage collection frees it."""

    def __init__(self) -> None:
        self.itself = self


def leave_a_cycle(job, report):
    """Fail if what the job before left is still there."""
    gc.disable()  # so that chance collects nothing
    if any(isinstance(thing, Cycle) for thing in gc.get_objects()):
        raise ValueError("expected freed memory, got that of the job before: collect it")
    Cycle()
    return False
