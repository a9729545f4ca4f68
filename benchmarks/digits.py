"""Every method on digits with random labels: strengths tuned on one seed, results from others.

    python benchmarks/digits.py                  # goes on where it was stopped; tables to results/digits/

A quick-scale result: one small problem and three seeds. It shows which methods act here, and ranks nothing.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import polars as pl
import tyro
from rich.console import Console
from rich.progress import Progress

from supple.lab.methods import METHODS
from supple.lab.problems import Run
from supple.lab.trainer import train
from supple.runs import charts
from supple.runs.stats import last_tasks
from supple.runs.store import load
from supple.runs.sweep import work_through

PROBLEM = "random-label-digits"
STRENGTHS = (1e-2, 1e-3, 1e-4)  # the paper's
OTHER_STRENGTHS = {  # where the dial means something else
    "decoupled-spectral": (3.0, 1.0, 0.3),
    # A squared gradient is small: the paper's strengths hardly act. The source's public code uses 10 for images.
    "streaming-ewc": (1e5, 1e4, 1e3, 1e2, 10.0, 1.0, *STRENGTHS),
    "redo": (0.3, 0.1, 0.025),
    "continual-backprop": (1e-3, 1e-4, 1e-5),
    "self-normalized-resets": (0.05, 0.02, 0.01),
    "weight-clipping": (1.0, 0.5, 0.2),
    "upgd": (1.0,),
    "normalize-and-project": (1.0,),
    "hare-and-tortoise": (1.0,),
    "network-reset": (1.0,),
}


@dataclass(frozen=True, kw_only=True)
class Digits:
    """Every method on digits with random labels: strengths tuned on one seed, results from others."""

    methods: tuple[str, ...] = tuple(METHODS)
    """Which methods; results of others that lie in the folder already are kept."""
    tuning_seed: int = 100
    """The seed that strengths are chosen on."""
    seeds: int = 3
    """Seeds that are reported, from 0."""
    out: Path = Path("runs/digits")
    """Where the runs go."""
    tables: Path = Path("results/digits")
    """Where the tables and the chart go."""
    workers: int | None = None
    """Processes at a time; one for each core when left out."""


def done(runs: list[Run], config: Digits) -> pl.DataFrame:
    """Make sure that all runs are trained, and return their last tasks' accuracy."""
    missing = [run for run in runs if not run.folder(config.out).finished(run.tasks)]
    with Progress() as progress:
        bar = progress.add_task(f"{len(missing)} runs", total=sum(run.tasks for run in missing))
        tasks = dict.fromkeys(missing, 0.0)

        def report(run: Run, finished: float) -> None:
            progress.advance(bar, finished - tasks[run])
            tasks[run] = finished

        work_through(missing, partial(train, root=config.out, pieces=2), workers=config.workers, report=report)
    folders = [run.folder(config.out).path.name for run in runs]
    return load(config.out).filter(pl.col("run").is_in(folders))


def main() -> None:
    config = tyro.cli(Digits)
    tuning = [
        Run.of(PROBLEM, method, [config.tuning_seed], strength=strength)
        for method in config.methods
        if METHODS[method].strength
        for strength in OTHER_STRENGTHS.get(method, STRENGTHS)
    ]
    tuned = last_tasks(done(tuning, config), "train_accuracy").sort("mean", descending=True)
    best = {row["method"]: row["strength"] for row in reversed(tuned.to_dicts())}
    reported = [
        Run.of(PROBLEM, method, [seed], strength=best.get(method))
        for seed in range(config.seeds)
        for method in config.methods
    ]
    rows = done(reported, config)
    table = last_tasks(rows, "train_accuracy").sort("mean", descending=True)
    config.tables.mkdir(parents=True, exist_ok=True)
    tuned.write_parquet(config.tables / "tuning.parquet")
    rows.write_parquet(config.tables / "rows.parquet")
    charts.save(charts.learning_curves(rows, "train_accuracy", f"{PROBLEM} (quick scale)"), config.tables)
    with pl.Config(tbl_rows=-1, tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True, float_precision=3):
        Console().print(str(tuned.select("method", "strength", "mean")), str(table))


if __name__ == "__main__":
    main()
