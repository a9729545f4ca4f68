"""Sweeps on a Ray cluster: one Ray task per job, with its share of cores and GPUs, restarted if a worker is lost."""

import logging
import subprocess
import sys
from collections.abc import Iterable
from importlib.util import find_spec
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
    done_or_explained,
    environment_variables,
)

ANSWER_TIMEOUT = 20
"""Seconds to wait for a cluster's answer: Ray itself waits for minutes, and then ends the process."""


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

    A machine that joins the cluster later gets jobs at once. Every machine needs supple installed, and access to the
    same folder of runs.

    Args:
        jobs: descriptions of the jobs, sent to the workers.
        work: an importable function; it must store its own results.
        workers: number of workers of a local cluster; an existing cluster determines its own number.
        threads: of each worker; also the number of cores that it reserves.
        gpus: the share of a GPU that each job reserves.
        address: of an existing cluster (``auto``, ``ray://host:10001``); a local one is started when left out.
        report: called in this process after every piece of a job.
    """
    import ray

    cores = None if address else (workers or max(1, available_cores() // threads)) * threads
    with environment_variables({"RAY_USAGE_STATS_ENABLED": "0"}):  # no usage statistics
        ray.init(
            address or "local",
            num_cpus=cores,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    try:
        _check_resources(threads, gpus)
        variables = KEEP_FREED_MEMORY | {"OMP_NUM_THREADS": str(threads)}
        remote: Any = ray.remote(
            num_cpus=threads, num_gpus=gpus, max_retries=RETRIES, runtime_env={"env_vars": variables}
        )(_do)
        waiting: dict[Any, Job] = {remote.remote(work, job, threads): job for job in jobs}
        while waiting:
            (first,), _ = ray.wait(list(waiting))
            job = waiting.pop(first)
            try:
                reports, more = ray.get(first)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except ray.exceptions.WorkerCrashedError as error:
                raise LostWorkersError(
                    f"expected workers to survive, got {RETRIES + 1} crashes in a row at {job}: "
                    "look for the cause, such as a lack of memory, or give each more --threads"
                ) from error
            for done in reports:
                report(job, done)
            if more:
                waiting[remote.remote(work, job, threads)] = job
    finally:
        ray.shutdown()


def _check_resources(threads: int, gpus: float) -> None:
    import ray

    machines = [machine["Resources"] for machine in ray.nodes() if machine["Alive"]]  # type: ignore[no-untyped-call]  # ray has none
    if not any(machine.get("CPU", 0) >= threads and machine.get("GPU", 0) >= gpus for machine in machines):
        raise ValueError(
            f"expected a machine with {threads} cores and {gpus:g} GPUs in the cluster, got none that large: "
            "ask for fewer (--threads, --gpus), or add such a machine"
        )


def check(gpus: float, address: str | None) -> None:
    """Check that Ray is installed, that the share of a GPU is valid, and that the cluster answers.

    Raises:
        ValueError: otherwise.
    """
    if find_spec("ray") is None:
        raise ValueError("expected Ray, got no such package: pip install '.[ray]' in the clone")
    if not (0 <= gpus <= 1 or (gpus > 1 and gpus.is_integer())):
        raise ValueError(f"expected a share of a GPU from 0 to 1, or a whole number, got {gpus}: choose another --gpus")
    if address is None:
        return
    connect = [sys.executable, "-c", "import ray, sys; ray.init(sys.argv[1])", address or "none"]
    try:
        subprocess.run(connect, capture_output=True, text=True, timeout=ANSWER_TIMEOUT, check=True)
    except subprocess.TimeoutExpired:
        why = f"no answer within {ANSWER_TIMEOUT} seconds"
    except subprocess.CalledProcessError as error:
        why = (error.stderr.split("\n\n")[0].strip().splitlines() or ["no reason"])[-1]
    else:
        return
    raise ValueError(
        f"expected the address of a running Ray cluster, such as auto or host:6379, got {address!r} ({why}): start it, "
        "or correct --address"
    )


def _do(work: Work[Job], job: Job, threads: int) -> tuple[list[float], bool | None]:
    """Do one piece of a job; return how much of the job was done before and is done now, and whether there is more."""
    torch.set_num_threads(threads)
    reports: list[float] = []
    more = done_or_explained(work, job, reports.append)
    return reports[:1] + reports[-1:], more
