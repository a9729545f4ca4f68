"""The same on a Ray cluster: one task a job, each with its share of cores and GPUs, begun again where one is lost."""

import logging
import socket
from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

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
    import ray

    cores = None if address else (workers or max(1, available_cores() // threads)) * threads
    with environment({"RAY_USAGE_STATS_ENABLED": "0"}):  # nothing leaves these machines unasked
        try:
            ray.init(
                address or "local",
                num_cpus=cores,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (Exception, SystemExit) as error:  # each connection fails in a way of its own
            raise ValueError(f"expected a Ray cluster at {address or 'local'}, got {error}: see `ray status`") from error
    try:
        machines = [machine["Resources"] for machine in ray.nodes() if machine["Alive"]]
        if not any(machine.get("CPU", 0) >= threads and machine.get("GPU", 0) >= gpus for machine in machines):
            raise ValueError(
                f"expected a machine with {threads} cores and {gpus:g} GPUs in the cluster, got none that has so many: "
                "take fewer (--threads, --gpus), or start one first"
            )
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


def check(gpus: float, address: str | None) -> None:
    """Make sure that Ray is installed, that each job can take this share of a GPU, and that the cluster answers.

    Raises:
        ValueError: otherwise. Ray itself waits for minutes, or for ever.
    """
    if find_spec("ray") is None:
        raise ValueError("expected Ray, got no such package: pip install 'supple[ray]'")
    if not (0 <= gpus <= 1 or (gpus > 1 and gpus.is_integer())):
        raise ValueError(f"expected a share of a GPU from 0 to 1, or a whole number of them, got {gpus}: choose --gpus")
    if address is None or address in ("auto", "local"):
        return
    try:
        place = urlsplit(address if "://" in address else f"//{address}")
        if not place.hostname:
            raise ValueError("no host")
        default = 10001 if place.scheme == "ray" else 6379
        with socket.create_connection((place.hostname, place.port or default), timeout=10) as connection:
            # How gRPC begins. It replies with its settings (4), or, where it wants TLS, with an alert or nothing.
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5))
            reply = connection.recv(9)
            if reply[3:4] != b"\x04" and reply[:1] not in (b"", b"\x15"):
                raise ValueError("something else answers there")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"expected the address of a running Ray cluster, such as auto or host:6379, got {address!r} ({error}): "
            "start it, or correct --address"
        ) from error


def _do(work: Work[Job], job: Job, threads: int) -> tuple[float, bool | None]:
    """One piece of a job: how much of it is done, and whether there is more."""
    torch.set_num_threads(threads)
    reports = [0.0]
    more = done_or_told(work, job, reports.append)
    return reports[-1], more
