"""The field's ledger: published numbers run again, by the protocols and settings of their authors.

    python benchmarks/field.py train                                      # days on one core; resumes where it stopped
    python benchmarks/field.py train --rows kumar-random-label-none       # one row
    python benchmarks/field.py tables                                     # rows so far to results/field, docs/field.md

The measure is the published one: online accuracy, of each batch before it is learned from, mean over all tasks. The
seeds of a row are one population.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import tyro
from measuring import put_into, write_environment
from scipy.stats import t as student

from supple.errors import known
from supple.lab.run import Run
from supple.lab.trainer import train
from supple.runs import sweep
from supple.runs.progress import progress_of
from supple.runs.stats import over_tasks
from supple.runs.store import load

ROOT = "runs/field"
RESULTS = Path("results/field")
PAGE = Path("docs/field.md")
METRIC = "online_accuracy"
READING = 0.02
"""How exactly a value can be read off a figure."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A published number, and our run of it."""

    published: float
    margin: float
    """Half of the published value's 95 % interval, or how exactly it is known."""
    place: str
    """Where the value stands."""
    problem: str
    method: str = "none"
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The other arguments of :meth:`Run.of`."""
    pieces: int = 1
    """Rows in several pieces take turns."""
    log: str = ""
    """The published run in results/field/elsayed.csv, which has its mean over the first tasks, however many."""

    def run(self, seeds: int) -> Run:
        """Our run, with this many seeds."""
        return Run.of(self.problem, self.method, range(seeds), scale="paper", diagnostics=(), **self.settings)

    def published_over(self, tasks: int) -> tuple[float, float]:
        """The published value and its margin over the first tasks, where these are known; otherwise over all."""
        if not self.log:
            return self.published, self.margin
        logs = pl.read_csv(RESULTS / "elsayed.csv").filter((pl.col("run") == self.log) & (pl.col("tasks") == tasks))
        (row,) = logs.to_dicts()
        return row["mean"], standard(row["error"], row["runs"])


def standard(error: float, runs: int) -> float:
    """Half of the 95 % interval of a mean with this standard error over ``runs`` runs."""
    return error * float(student.ppf(0.975, runs - 1))


kumar = partial(
    Row,
    margin=READING,
    place="[Figure 2](https://arxiv.org/abs/2308.11958)",
    problem="random-label-mnist-kumar",
)
elsayed = partial(
    Row,
    place="[raw logs](https://github.com/mohmdelsayed/weight-clipping)",
    problem="streamed-permuted-mnist",
    pieces=30,
)
upgd_input = partial(
    Row,
    margin=READING,
    place="[figure](https://arxiv.org/abs/2404.00781)",
    problem="input-permuted-mnist",
)
upgd_label = partial(
    Row,
    margin=READING,
    place="[figure](https://arxiv.org/abs/2404.00781)",
    problem="label-permuted-emnist",
)
lillo = partial(
    Row,
    place="[Table 2](https://arxiv.org/abs/2509.22562)",
    problem="random-label-mnist-lillo",
)

# Their λ is that of λ/2 ‖·‖², twice ours.
ROWS: dict[str, Row] = {
    "kumar-random-label-none": kumar(published=0.16, settings={"step_size": 1e-4}),
    "kumar-random-label-l2": kumar(published=0.71, method="l2", settings={"step_size": 1e-4, "strength": 5e-3}),
    "kumar-random-label-l2-init": kumar(
        published=0.86, method="l2-init", settings={"step_size": 1e-4, "strength": 5e-3}
    ),
    "kumar-random-label-continual-backprop": kumar(
        published=0.92,
        method="continual-backprop",
        settings={"step_size": 1e-3, "strength": 1e-3, "options": {"utility": "adaptable contribution"}},
    ),
    "upgd-input-permuted-upgd": upgd_input(
        published=0.78,
        method="upgd",
        settings={"options": {"noise": 0.1, "decay": 0.9999, "weight_decay": 0.01, "corrected_maximum": False}},
    ),
    "upgd-input-permuted-adam": upgd_input(published=0.68, settings={"optimizer": "adam-0-0.99", "step_size": 1e-4}),
    "upgd-label-permuted-upgd": upgd_label(
        published=0.74, method="upgd", settings={"options": {"noise": 1e-3, "decay": 0.9, "corrected_maximum": False}}
    ),
    "upgd-label-permuted-adamw": upgd_label(
        published=0.35, settings={"optimizer": "adamw-0-0.9999", "step_size": 1e-4}
    ),
    "kumar-permuted-l2-init": Row(
        published=0.811,
        margin=0.0005,
        place="[Table 2](https://arxiv.org/abs/2308.11958)",
        problem="permuted-mnist-kumar",
        method="l2-init",
        settings={"optimizer": "adam", "step_size": 1e-3, "strength": 5e-4, "tasks": 20},
    ),
    "lillo-relu": lillo(published=0.2003, margin=standard(0.0246 / math.sqrt(5), 5)),
    "lillo-leaky-relu": lillo(
        published=0.9153,
        margin=standard(0.0018 / math.sqrt(5), 5),
        settings={"model": "mlp-2x100-leaky-0.8", "step_size": 1e-3},
    ),
    "elsayed-adam": elsayed(published=0.8545, margin=standard(0.00037, 30), log="adam"),
    "elsayed-clipping": elsayed(
        published=0.9076,
        margin=standard(0.00004, 30),
        method="weight-clipping",
        settings={"strength": 1.0},
        log="clipping",
    ),
}
"""In the order of training."""


def piece(name: str, report: Any, *, seeds: int) -> bool:
    """Train the next piece of a row; return whether tasks are left."""
    return train(ROWS[name].run(seeds), report, root=ROOT, pieces=ROWS[name].pieces)


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train rows on one thread, in their order; stop it at any time, it resumes after the last finished task."""

    rows: tuple[str, ...] = tuple(ROWS)
    """Names of rows."""
    seeds: int = 5
    """Seeds of a row, which train as one population."""

    def __call__(self) -> None:
        left = {name: ROWS[known(name, ROWS, "row")].run(self.seeds).tasks for name in self.rows}
        with progress_of({name: (name, float(tasks)) for name, tasks in left.items()}) as report:
            sweep.work_through(left, partial(piece, seeds=self.seeds), workers=1, report=report)


@dataclass(frozen=True, kw_only=True)
class Tables:
    """Write the rows of all results so far, and the ledger to the page and the terminal."""

    seeds: int = 5
    """Seeds of a row, as it was trained."""

    def __call__(self) -> None:
        trained, lines = set[str](), []
        for name, row in ROWS.items():
            run = row.run(self.seeds)
            rows = measured(name, run)
            trained |= set() if rows is None else set(rows["run"])
            lines.append(line(name, row, run.tasks, rows))
        if trained:
            write_environment(RESULTS, ROOT, trained)
        print("\n".join((HEAD, *lines)))
        put_into(PAGE, "ledger", (HEAD, *lines))


HEAD = """| row | published | source | ours, 95 % interval | seeds | tasks | verdict |
|---|---|---|---|---|---|---|"""


def measured(name: str, run: Run) -> pl.DataFrame | None:
    """The measurements of a row, kept in results/field where those of this machine are not more; None without any."""
    path, folder = RESULTS / f"{name}.parquet", run.folder(ROOT).name
    rows = pl.read_parquet(path) if path.exists() else None
    if (Path(ROOT) / folder / "metrics.parquet").exists():
        here = load(ROOT, {folder}).filter(pl.col("metric") == METRIC)
        if rows is None or here["task"].n_unique() >= rows["task"].n_unique():  # another machine may have more
            here.write_parquet(path)
            return here
    return rows


def line(name: str, row: Row, planned: int, rows: pl.DataFrame | None) -> str:
    """The table row of a published number, and of our measurements if there are any."""
    tasks = planned if rows is None else int(rows["task"].max() or 0) + 1
    published, margin = row.published_over(tasks)
    columns = [f"`{name}`", f"{published:.4g} ± {margin:.2g}", row.place]
    if rows is None:
        return f"| {' | '.join([*columns, '-', '-', f'0 of {planned}', 'not run'])} |"
    (ours,) = over_tasks(rows, METRIC).to_dicts()
    interval = standard(ours["error"], ours["seeds"])
    verdict = "agrees" if abs(ours["mean"] - published) <= margin + interval else "differs"
    if tasks < planned and not row.log:
        verdict = "unfinished"
    columns += [f"{ours['mean']:.4f} ± {interval:.2g}", str(ours["seeds"]), f"{tasks} of {planned}", verdict]
    return f"| {' | '.join(columns)} |"


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"train": Train, "tables": Tables})()
