"""The paper's experiments with perceptrons on MNIST and Fashion-MNIST, breadth first: ten tasks of all, then ten more.

    python benchmarks/paper.py train      # days on a core; stop it when you like, it goes on where it was
    python benchmarks/paper.py tables     # what there is so far: rows and charts to results/paper/, tables here

App. B's protocol at its full size: 12,800 images, 4x256 ReLU network, batch 512, 40 epochs a task, 50 tasks, Adam at
1e-3. Matrix products of training steps are rounded to bfloat16 where the processor can, which moves no result beyond
the scatter over seeds (docs/reproduction.md). Strengths are tuned on one seed and its first ten tasks, by the mean
accuracy of the last five of them; the seeds that are reported are others.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import polars as pl
import tyro
from rich.console import Console

from supple.lab.grid import TUNING_SEEDS, tuned
from supple.lab.run import Run
from supple.lab.trainer import train
from supple.runs import charts, sweep
from supple.runs.progress import progress_of
from supple.runs.store import load
from supple.runs.tables import results_table

ROOT = "runs/paper"
PIECE = 10
SEEDS = range(3)

SWEPT = (1e-2, 1e-3, 1e-4)  # the paper's
STRENGTHS: dict[str, tuple[float | None, ...]] = {
    "none": (None,),
    "spectral": SWEPT,
    "l2-init": SWEPT,
    "l2": SWEPT,
    "decoupled-spectral": (0.1, 1.0, 10.0),  # not the paper's but ours
    "shrink-and-perturb": SWEPT,
    "redo": (0.1, 0.025, 0.01),  # a threshold
    "crelu": (None,),
    "wasserstein": SWEPT,
    "streaming-ewc": (*SWEPT, 1e2, 1e4),  # a squared gradient is small: the paper's strengths hardly act
}
FURTHER_STRENGTHS = {
    "spectral": (1e-5, 1e-1, 1.0),
    "l2": (1e-5, 1e-1),
    "l2-init": (1e-5, 1e-1),
    "decoupled-spectral": (0.01, 100.0),
}
FEW = ("none", "l2", "l2-init", "spectral", "decoupled-spectral")


def run_of(method: str, strength: float | None, seed: int, problem: str = "random-label-mnist", **changes: Any) -> Run:
    return Run.of(problem, method, [seed], scale="paper", strength=strength, matmul_precision="medium", **changes)


def tuning(model: str) -> list[Run]:
    """The grid of strengths on the seed that is not reported."""
    return [
        run_of(method, strength, TUNING_SEEDS, model=model)
        for method, strengths in STRENGTHS.items()
        if len(strengths) > 1
        for strength in strengths
    ]


def best(model: str) -> dict[str, float | None]:
    """Each method's best strength."""
    found = {method: strength for method, strength, _ in tuned(rows_of(tuning(model), PIECE))}
    return {method: found.get(method) for method in STRENGTHS}


def reported(model: str, methods: Iterable[str] = STRENGTHS, tuned_on: str | None = None, **changes: Any) -> list[Run]:
    """Each method at its best strength, on the seeds that are reported."""
    strengths = best(tuned_on or model)
    return [run_of(method, strengths[method], seed, model=model, **changes) for seed, method in product(SEEDS, methods)]


def exponents() -> list[Run]:
    """Figure 7."""
    strength = best("mlp")["spectral"]
    return [
        run_of("spectral", strength, seed, options={"exponent": exponent} if exponent != 2 else None)
        for exponent, seed in product((1, 2, 4, 8), SEEDS)
    ]


def curves() -> list[Run]:
    """Figure 10: the whole range of strengths, on the seed that they are tuned on."""
    further = [
        run_of(method, strength, TUNING_SEEDS)
        for method, strengths in FURTHER_STRENGTHS.items()
        for strength in strengths
    ]
    return [*(run for run in tuning("mlp") if run.method in FURTHER_STRENGTHS), *further]


STUDIES = {
    "mnist": partial(reported, "mlp"),
    "mnist-layer-norm": partial(reported, "mlp-layer-norm"),
    "exponents": exponents,
    "strengths": curves,
    "fashion-mnist": partial(reported, "mlp", FEW, problem="random-label-fashion-mnist"),
}


def plan() -> Iterator[tuple[list[Run], int]]:
    """What to train next, and up to which task; a grid of strengths comes before what needs the best of them."""
    for tasks in range(PIECE, 51, PIECE):
        for name, runs in STUDIES.items():
            if tasks == PIECE and name.startswith("mnist"):
                yield tuning("mlp" if name == "mnist" else "mlp-layer-norm"), PIECE
            if tasks == PIECE or name.startswith("mnist"):
                yield runs(), tasks


def done(run: Run) -> int:
    """How many tasks of a run have been learned."""
    checkpoint = run.folder(ROOT).checkpoint()
    return checkpoint.finished if checkpoint else 0


def piece(run: Run, report: Any, *, tasks: int) -> bool:
    """The next ten tasks of a run; whether there are more up to ``tasks``."""
    train(run, report, root=ROOT, pieces=run.tasks // PIECE)
    return done(run) < tasks


def rows_of(runs: list[Run], tasks: int | None = None) -> pl.DataFrame:
    """What was measured of some runs in their first tasks, as if there were no more; as many as all have, if not said.

    Raises:
        FileNotFoundError: for runs of which there is nothing yet.
    """
    rows = load(ROOT, {run.folder(ROOT).name for run in runs})
    tasks = tasks or min(done(run) for run in runs)
    return rows.filter(pl.col("task") < tasks).with_columns(tasks=pl.lit(tasks))


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train what is missing, the next ten tasks of all runs before any further ones."""

    workers: int | None = None
    """Processes at a time, with one thread each; as many as the cores allow when left out."""

    def __call__(self) -> None:
        for runs, tasks in plan():
            left = [run for run in dict.fromkeys(runs) if done(run) < tasks]
            if left:
                with progress_of({run: (run.method, tasks) for run in left}) as report:
                    sweep.work_through(left, partial(piece, tasks=tasks), workers=self.workers, report=report)


@dataclass(frozen=True, kw_only=True)
class Tables:
    """Write the rows of what there is so far, draw it, and print how it stands."""

    out: Path = Path("results/paper")
    """Where rows and charts go."""

    def __call__(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        for model in ("mlp", "mlp-layer-norm"):
            grid = rows_of(tuning(model), PIECE)
            grid.write_parquet(self.out / f"tuning-{model}.parquet")
            Console().print(results_table(grid, "train_accuracy"))
        for name, study in STUDIES.items():
            runs = study()
            if not all(map(done, runs)):
                Console().print(f"{name}: not all of it has been begun")
                continue
            rows = rows_of(runs)
            rows.write_parquet(self.out / f"{name}.parquet")
            tasks = rows["tasks"][0]
            title, seeds = f"{name}, {tasks} of {runs[0].tasks} tasks", rows["seed"].n_unique()
            draw = charts.sensitivity_of if name == "strengths" else charts.curves_of
            series = "options" if name == "exponents" else "method"
            chart = charts.configured(draw(rows, "train_accuracy", f"{title}, {seeds} seeds", series=series))
            chart.save(self.out / f"{name}.png", scale_factor=2)
            Console().print(results_table(rows, "train_accuracy"))


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"train": Train, "tables": Tables})()
