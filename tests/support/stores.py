"""Folders of runs without any training: what a store holds of runs whose measurements are made up."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import polars as pl

from supple.lab.run import Run
from supple.runs.folder import Checkpoint
from supple.runs.store import SCHEMA

Measure = Callable[[Run, int, int, str], float]
"""Of a run, a member, a task and a metric."""


def store(
    root: Path, runs: Iterable[Run], metrics: Iterable[str], measure: Measure, *, done: int | None = None
) -> None:
    """Runs as the trainer leaves them, the first ``done`` tasks behind them; all when left out, none at 0."""
    for run in runs:
        folder = run.folder(str(root))
        with folder.locked():
            folder.begin(device="cpu", subset=False)
            tasks = run.tasks if done is None else done
            rows = [
                (member, task, metric, measure(run, member, task, metric))
                for task in range(tasks)
                for metric in metrics
                for member in range(len(run.seeds))
            ]
            if rows:
                folder.save(Checkpoint(tasks, {}, pl.DataFrame(rows, schema=SCHEMA, orient="row"), 90.0))


def plausible(run: Run, member: int, task: int, metric: str) -> float:
    """Curves that fall or hold, by method, with a scatter over seeds."""
    rng = np.random.default_rng([run.seeds[member], task, *map(ord, run.method + metric)])
    fall = sum(map(ord, run.method)) % 7 / 10 * abs(np.log10(run.strengths[member] or 1e-3) + 3.2)
    level = {"weight_norm": 20.0, "train_loss": 2.0}.get(metric, 0.9)
    return float(level * np.exp(-fall * task / run.tasks) * (1 + 0.05 * rng.standard_normal()))
