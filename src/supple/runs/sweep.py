"""Run many jobs in parallel in processes of this machine, and collect their progress."""

import gc
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from supple.errors import FailedWorkError, LostWorkersError, sentence

Job = TypeVar("Job")
Report = Callable[[Job, float], None]
Work = Callable[[Job, Callable[[float], None]], bool | None]
"""Does a job, or a piece of it, and calls its second argument with how much is done; returns whether work is left."""

RETRIES = 3
"""How many workers may be lost in a row, without progress in between, before an error is raised."""

# By default, glibc returns freed memory to the system and requests it again at each training step, with page faults.
# If it keeps the memory, in large pages, steps of small networks are clearly faster. Other C libraries ignore this.
KEEP_FREED_MEMORY = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "1073741824",
    "MALLOC_TOP_PAD_": "67108864",
}


def work_through(
    jobs: Iterable[Job], work: Work[Job], *, workers: int | None = None, threads: int = 1, report: Report[Job]
) -> None:
    """Do all jobs, ``workers`` at a time, and call ``report(job, done)`` in this process as they progress.

    A job with work left goes to the end of the queue, so that jobs in pieces end at about the same time. Every worker
    is a new process. If a worker is lost (killed, out of memory), its job restarts in another one, at most ``RETRIES``
    times without any progress. The first error stops all jobs and is raised here as a
    :class:`~supple.errors.FailedWorkError` with the original message.

    Args:
        jobs: hashable descriptions, sent to the workers.
        work: an importable function; it must store its own results.
        workers: processes at a time; as many as the cores allow when left out.
        threads: of each worker. On small networks a second thread gains nothing, and it changes the order of sums:
            results are bit-for-bit identical only for the same number of threads.
        report: called in this process.
    """
    left, lost, furthest = list(jobs), 0, dict[Job, float]()

    def keep_and_report(job: Job, done: float) -> None:
        furthest[job] = max(done, furthest.get(job, 0.0))
        report(job, done)

    while left:
        before = sum(furthest.values())
        try:
            _work_through(left, work, workers or max(1, available_cores() // threads), threads, keep_and_report)
        except BrokenProcessPool as error:
            lost = 0 if sum(furthest.values()) > before else lost + 1
            if lost > RETRIES:
                raise LostWorkersError(
                    f"expected workers to survive, got {lost} crashes in a row with {len(left)} jobs left: "
                    "look for the cause, such as a lack of memory, or use fewer (--workers)"
                ) from error


def _work_through(left: list[Job], work: Work[Job], workers: int, threads: int, report: Report[Job]) -> None:
    """Do the jobs in ``left``, and remove each one that is done."""
    context = multiprocessing.get_context("spawn")
    messages = context.SimpleQueue()  # put() returns after writing: no report is lost when a worker ends
    before = multiprocessing.active_children()
    jobs = tuple(left)  # messages hold the job's index: so short that a kill never cuts one off
    with environment_variables(KEEP_FREED_MEMORY), _interrupts_blocked():
        pool = ProcessPoolExecutor(min(workers, len(jobs)), context, initializer=_start, initargs=(messages, threads))
        waiting = {pool.submit(_do, work, job, number): number for number, job in enumerate(jobs)}
    try:
        while waiting:
            finished, _ = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
            while not messages.empty():
                number, done = messages.get()
                report(jobs[number], done)
            for future in finished:
                more = future.result()
                number = waiting.pop(future)
                if more:
                    waiting[pool.submit(_do, work, jobs[number], number)] = number
                else:
                    left.remove(jobs[number])
        pool.shutdown()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - set(before):
            process.terminate()
        raise


def check(workers: int | None, threads: int = 1) -> None:
    """Check that neither the number of workers nor that of threads exceeds the number of cores."""
    cores = available_cores()
    for what, count in (("workers", workers), ("threads", threads)):
        if count is not None and not 1 <= count <= cores:
            raise ValueError(f"expected 1 to {cores} {what}, as there are {cores} cores, got {count}: choose --{what}")


def available_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_messages: Any = None


def _start(messages: Any, threads: int) -> None:
    global _messages
    _messages = messages
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker when its parent dies: a killed parent cannot end it, and it would train on and then hang."""
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os._exit(1)


def _do(work: Work[Job], job: Job, number: int) -> bool | None:
    sent = -math.inf
    held: list[float] = []

    def report(done: float) -> None:
        nonlocal sent
        held[:] = [done]
        if time.monotonic() - sent > 0.1:  # often enough to watch, and rarely enough that the queue never fills
            _messages.put((number, held.pop()))
            sent = time.monotonic()

    more = done_or_explained(work, job, report)
    if held:
        _messages.put((number, held.pop()))
    return more


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Processes started in this block ignore Ctrl-C, which a terminal sends to all of them: their parent ends them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)  # a Ctrl-C that arrived in the block takes effect now


def done_or_explained(work: Work[Job], job: Job, report: Callable[[float], None]) -> bool | None:
    """Do the work; turn an error into a picklable exception, with its message made here, where the traceback is."""
    try:
        return work(job, report)
    except (Exception, SystemExit) as error:
        raise FailedWorkError(sentence(error)) from error
    finally:
        gc.collect()  # networks lie in cycles, which Python would collect only after many jobs


@contextmanager
def environment_variables(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables for processes started in this block, except those that the user has set."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
