"""Runs the checks of a test file on several ranks: processes of their own that talk over gloo.

A check is a function of the file whose name starts with ``check_``. All run in one set of processes, one after another:
what takes time is to start them.
"""

import multiprocessing
import queue
import tempfile
import traceback
import warnings
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

from supple.mitigators.forecast import RewriteWarning
from support.modules import module_at

TIMEOUT = timedelta(seconds=60)
LOADED_ONCE = [  # in the process that the ranks are forked from
    "hypothesis",
    "pytest",
    "torch._dynamo",
    "torch.distributed.checkpoint",
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.debug",
    "torch.distributed.tensor.parallel",
    "torch.testing",
    "supple",
    "oracles.regularizers",
    "support.zoo",
]


def run_checks(path: str, ranks: int) -> None:
    """Run every check of the file on so many ranks; fails with what the first rank to fail has to say."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED_ONCE)
    reports = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        processes = [context.Process(target=_run, args=(path, rank, ranks, folder, reports)) for rank in range(ranks)]
        for process in processes:
            process.start()
        try:
            for _ in processes:
                report = reports.get(timeout=5 * TIMEOUT.total_seconds())
                assert report is None, report
        except queue.Empty:
            raise AssertionError("expected a report from each rank, and one is silent") from None
        finally:
            for process in processes:
                process.terminate()
                process.join()


def _run(path: str, rank: int, ranks: int, folder: str, reports: "multiprocessing.Queue[str | None]") -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.simplefilter("ignore", RewriteWarning)  # as in pyproject.toml
    module, name = module_at(path), "nothing yet"
    try:
        distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks, timeout=TIMEOUT
        )
        for name, check in [*vars(module).items()]:  # a warning adds to them
            if name.startswith("check_"):
                torch.manual_seed(0)
                check(Path(folder))
                distributed.barrier()
        reports.put(None)
        distributed.destroy_process_group()
    except BaseException:
        reports.put(f"rank {rank} of {ranks} in {name}:\n{traceback.format_exc()}")
