"""The same on a Ray cluster: one task a job, each with its share of cores and GPUs, begun again where one is lost."""

import logging
from collections.abc import Iterable
from typing import Any

import torch

from supple.errors import LostWorkersError
from supple.runs.sweep import (
    KEEP_FREED_MEMORY,
    RETRIES,
    Job,
    Report,
    Work,
    available_cores,
    done_or_told,
    environment,
)


def work_through(
    jobs: Iterable[Job],
    work: Work[Job],
    *,
    workers: int | None = None,
    threads: int = 1,
    gpus: float = 0.0,
    address: str | None = None,
    report: Report[Job],
) -> None:
    """Do all jobs as :func:`supple.runs.sweep.work_through` does, on every machine of a Ray cluster.

    A machine that joins the cluster takes its share at once. All of them need supple installed, and a folder of runs
    that each can reach.

    Args:
        jobs: descriptions, sent to the workers.
        work: an importable function; it must keep its own results.
        workers: of a local cluster; an existing one decides by itself.
        threads: of each worker, and the cores that it takes.
        gpus: the share of a GPU that each job takes.
        address: of an existing cluster (``auto``, ``ray://host:10001``); a local one is started when left out.
        report: called in this process, when a piece of a job is done.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ValueError("expected Ray, got no such package: pip install 'supple[ray]'") from error

    cores = None if address else (workers or max(1, available_cores() // threads)) * threads
    with environment({"RAY_USAGE_STATS_ENABLED": "0"}):  # nothing leaves these machines unasked
        ray.init(
            address or "local",
            num_cpus=cores,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    try:
        variables = KEEP_FREED_MEMORY | {"OMP_NUM_THREADS": str(threads)}
        remote: Any = ray.remote(
            num_cpus=threads, num_gpus=gpus, max_retries=RETRIES, runtime_env={"env_vars": variables}
        )(_do)
        waiting: dict[Any, Job] = {remote.remote(work, job, threads): job for job in jobs}
        while waiting:
            (first,), _ = ray.wait(list(waiting))
            job = waiting.pop(first)
            try:
                done, more = ray.get(first)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except ray.exceptions.WorkerCrashedError as error:
                raise LostWorkersError(
                    f"expected workers to live, but {RETRIES + 1} died one after the other at {job}: "
                    "look for what kills them, such as a lack of memory, or give each more --threads"
                ) from error
            report(job, done)
            if more:
                waiting[remote.remote(work, job, threads)] = job
    finally:
        ray.shutdown()


def _do(work: Work[Job], job: Job, threads: int) -> tuple[float, bool | None]:
    """One piece of a job: how much of it is done, and whether there is more."""
    torch.set_num_threads(threads)
    reports = [0.0]
    more = done_or_told(work, job, reports.append)
    return reports[-1], more
