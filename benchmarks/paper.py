"""Those experiments of the paper that run on a CPU: first ten tasks of each study, then more tasks of some.

    python benchmarks/paper.py train      # days on one core; stop it at any time, it resumes
    python benchmarks/paper.py tables     # results so far: rows and charts to the repository, tables to the terminal

App. B's protocol at full size; on MNIST 12,800 images, 4x256 ReLU network, batch 512, 40 epochs per task, 50 tasks,
Adam at 1e-3. EMNIST and ImageNet are used as far as SUPPLE_DATA has them. Training steps round inputs of matrix
products to bfloat16 where the CPU supports it, which changes no result by more than the variation over seeds
(docs/reproduction.md). Strengths are tuned on one seed and its first ten tasks, by the mean accuracy of the last five
of them; the reported seeds are different ones.
"""

import json
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import polars as pl
import tyro
from rich.console import Console

from supple.lab.grid import TUNING_SEEDS
from supple.lab.run import Run
from supple.lab.trainer import train
from supple.runs import charts, sweep
from supple.runs.progress import progress_of
from supple.runs.stats import over_tasks, paired, ranking
from supple.runs.store import load
from supple.runs.tables import results_table

ROOT = "runs/paper"
PIECE = 10
INSIDE = (
    "train_accuracy",
    "spectral_norm",
    "representation_change",
    "gradient_effective_rank",
    "stable_rank",
    "feature_rank",
)
"""The metrics of Figures 3 and 14, which are drawn for every run."""
SEEDS = range(3)

SWEPT = (1e-2, 1e-3, 1e-4)  # the paper's
STRENGTHS: dict[str, tuple[float | None, ...]] = {
    "none": (None,),
    "spectral": SWEPT,
    "l2-init": SWEPT,
    "l2": SWEPT,
    "decoupled-spectral": (0.1, 1.0, 10.0),  # not in the paper, but this library's own method
    "shrink-and-perturb": SWEPT,
    "redo": (0.1, 0.025, 0.01),  # a threshold
    "crelu": (None,),
    "wasserstein": SWEPT,
    "streaming-ewc": (*SWEPT, 1e2, 1e4),  # squared gradients are small: the paper's strengths hardly act
}
FURTHER_STRENGTHS = {
    "spectral": (1e-5, 1e-1, 1.0),
    "l2": (1e-5, 1e-1),
    "l2-init": (1e-5, 1e-1),
    "decoupled-spectral": (0.01, 100.0),
}
EXPONENTS = {1: (1.0, 0.1, *SWEPT), 2: SWEPT, 4: (*SWEPT, 1e-5), 8: (*SWEPT, 1e-5, 1e-6)}
FORMS = ("none", "spectral", "decoupled-spectral")
FEW = ("none", "l2", "l2-init", "spectral", "decoupled-spectral")


def run_of(method: str, strength: float | None, seed: int, problem: str = "random-label-mnist", **changes: Any) -> Run:
    return Run.of(problem, method, [seed], scale="paper", strength=strength, matmul_precision="medium", **changes)


def tuning(methods: Iterable[str] = STRENGTHS, **changes: Any) -> list[Run]:
    """The grid of strengths, on the tuning seed."""
    return [
        run_of(method, strength, TUNING_SEEDS, **changes)
        for method in methods
        if len(STRENGTHS[method]) > 1
        for strength in STRENGTHS[method]
    ]


def reported(
    methods: Iterable[str] = STRENGTHS,
    tuned_on: list[Run] | None = None,
    metric: str = "train_accuracy",
    **changes: Any,
) -> list[Run]:
    """Each method at its best strength on a grid (by default MNIST's), on the reported seeds."""
    ranked = ranking(rows_of(tuned_on or GRIDS["mnist"], PIECE), metric).unique("method", keep="first")
    best = dict(ranked.select("method", "strength").rows())
    return [run_of(method, best.get(method), seed, **changes) for seed, method in product(SEEDS, methods)]


def elsewhere(name: str, problem: str, methods: Iterable[str] = FEW, metric: str = "train_accuracy") -> list[Run]:
    """Another problem: each method at its best strength there; the decoupled form also at 1, its best on MNIST."""
    at_one = [run_of("decoupled-spectral", 1.0, seed, problem) for seed in SEEDS]
    return list(dict.fromkeys([*reported(methods, GRIDS[name], metric, problem=problem), *at_one]))


def with_exponent(exponent: int) -> list[Run]:
    """The grid of strengths of one exponent."""
    options = {"exponent": exponent} if exponent != 2 else None  # 2 is the default
    return [run_of("spectral", strength, TUNING_SEEDS, options=options) for strength in EXPONENTS[exponent]]


def exponents() -> list[Run]:
    """Figure 7, each exponent at its best strength."""
    grids = map(with_exponent, EXPONENTS)
    return [run for grid in grids for run in reported(["spectral"], grid, options=json.loads(grid[0].options))]


def curves() -> list[Run]:
    """Figure 10: the whole range of strengths, on the tuning seed."""
    further = [
        run_of(method, strength, TUNING_SEEDS)
        for method, strengths in FURTHER_STRENGTHS.items()
        for strength in strengths
    ]
    return [*tuning(FURTHER_STRENGTHS), *further]


def step_sizes() -> list[Run]:
    """App. B's three candidate step sizes, at the strengths that are best for step size 1e-3."""
    return [run for step_size in (1e-3, 5e-3, 5e-4) for run in reported(FORMS, step_size=step_size)]


def adams(grid: str, model: str) -> list[Run]:
    """Adam, with equal betas (forgets faster), or restarted each task: how much of the loss do its moments cause?"""
    return [
        run
        for optimizer in ("adam", "adam-equal-betas", "adam-restarted")
        for run in reported(FORMS, GRIDS[grid], model=model, optimizer=optimizer)
    ]


GRIDS = {
    "mnist": tuning(),
    "mnist-layer-norm": tuning(model="mlp-layer-norm"),
    "exponents": [run for exponent in EXPONENTS for run in with_exponent(exponent)],
    "fashion-mnist": tuning(FEW, problem="random-label-fashion-mnist"),
    "label-flip": tuning(FEW, problem="label-flip-emnist"),
    "pixel-permutation": tuning(FEW, problem="pixel-permutation-emnist"),
    "continual-imagenet": tuning((*FEW, "redo"), problem="continual-imagenet"),
}
"""Grids of strengths, to train before the study with the same name."""

STUDIES: dict[str, Callable[[], list[Run]]] = {
    "mnist": reported,
    "mnist-layer-norm": partial(reported, tuned_on=GRIDS["mnist-layer-norm"], model="mlp-layer-norm"),
    "exponents": exponents,
    "strengths": curves,
    "fashion-mnist": partial(elsewhere, "fashion-mnist", "random-label-fashion-mnist"),
    "step-sizes": step_sizes,
    "adam": partial(adams, "mnist", "mlp"),
    "adam-layer-norm": partial(adams, "mnist-layer-norm", "mlp-layer-norm"),
    "label-flip": partial(elsewhere, "label-flip", "label-flip-emnist"),
    "pixel-permutation": partial(elsewhere, "pixel-permutation", "pixel-permutation-emnist"),
    "continual-imagenet": partial(
        elsewhere, "continual-imagenet", "continual-imagenet", (*FEW, "redo"), "test_accuracy"
    ),
}

PLAN = (
    ("mnist", PIECE),
    ("mnist-layer-norm", PIECE),
    ("exponents", PIECE),
    ("strengths", PIECE),
    ("adam-layer-norm", PIECE),
    ("adam", PIECE),
    ("step-sizes", PIECE),
    ("fashion-mnist", PIECE),
    ("label-flip", PIECE),
    ("pixel-permutation", PIECE),
    ("mnist", 50),
    ("mnist-layer-norm", 50),
    ("continual-imagenet", 100),
)
"""The order of training: studies, and the number of tasks to reach."""


def plan(methods: Collection[str]) -> Iterator[tuple[list[Run], int]]:
    """``PLAN`` as runs of some methods; a grid of strengths precedes the study that needs its best strengths."""
    for name, tasks in PLAN:
        yield GRIDS.get(name, []), PIECE
        yield [run for run in STUDIES[name]() if run.method in methods], tasks


SERIES = {"exponents": "options", "step-sizes": "step_size", "adam": "optimizer", "adam-layer-norm": "optimizer"}
"""The setting that determines a line's colour in a study's chart, if not the method."""


def done(run: Run) -> int:
    """The number of finished tasks of a run."""
    checkpoint = run.folder(ROOT).checkpoint()
    return checkpoint.finished if checkpoint else 0


def piece(run: Run, report: Any, *, tasks: int) -> bool:
    """Train the next ten tasks of a run; return whether it needs more to reach ``tasks``."""
    train(run, report, root=ROOT, pieces=run.tasks // PIECE)
    return done(run) < tasks


def rows_of(runs: list[Run], tasks: int | None = None) -> pl.DataFrame:
    """The measurements of the first ``tasks`` tasks of some runs; by default, of the tasks that all have finished.

    Raises:
        FileNotFoundError: if the runs have no results yet.
    """
    rows = load(ROOT, {run.folder(ROOT).name for run in runs})
    tasks = tasks or min(done(run) for run in runs)
    return rows.filter(pl.col("task") < tasks).with_columns(tasks=pl.lit(tasks))


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train what is missing: the next ten tasks of all runs before any later ones."""

    workers: int | None = None
    """Processes at a time, with one thread each; as many as the cores allow when left out."""
    methods: tuple[str, ...] = tuple(STRENGTHS)
    """Methods to compare now; grids of strengths are always trained in full."""

    def __call__(self) -> None:
        for runs, tasks in plan(self.methods):
            left = [run for run in dict.fromkeys(runs) if done(run) < tasks]
            if left:
                with progress_of({run: (run.method, tasks) for run in left}) as report:
                    sweep.work_through(left, partial(piece, tasks=tasks), workers=self.workers, report=report)


@dataclass(frozen=True, kw_only=True)
class Tables:
    """Write the rows of all results so far, draw them, and print tables."""

    out: Path = Path("results/paper")
    """Folder for the rows."""
    charts: Path = Path("docs/paper")
    """Folder for the charts."""

    def __call__(self) -> None:
        for folder in (self.out, self.charts):
            folder.mkdir(parents=True, exist_ok=True)
        console = Console()
        pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=120, float_precision=4, tbl_hide_column_data_types=True)
        for name, study in STUDIES.items():
            grid = GRIDS.get(name, [])
            if not all(done(run) >= PIECE for run in grid) or not all(map(done, runs := study())):
                console.print(f"{name}: not all of it has been begun\n")
                continue
            metric = "test_accuracy" if name == "continual-imagenet" else "train_accuracy"
            if grid:
                chosen = rows_of(grid, PIECE)
                chosen.write_parquet(self.out / f"tuning-{name}.parquet")
                console.print("For choosing the strength:", results_table(chosen, metric))
            rows = rows_of(runs)
            rows.write_parquet(self.out / f"{name}.parquet")
            tasks, seeds = rows["tasks"][0], rows["seed"].n_unique()
            title = f"{name}, {tasks} of {runs[0].tasks} tasks, {seeds} seed{'s'[: seeds > 1]}"
            draw = charts.sensitivity_of if name == "strengths" else charts.curves_of
            chart = charts.configured(draw(rows, metric, title, series=SERIES.get(name, "method")))
            chart.save(self.charts / f"{name}.png", scale_factor=2)
            for first in sorted({min(PIECE, tasks), tasks}):  # the tasks of most studies, and of this one
                part = rows_of(runs, first)
                console.print(f"The first {first} tasks:", results_table(part, metric))
                for compared in compare(name, part, metric):
                    print(compared)
                if name.startswith("mnist"):
                    print(inside(part))
            if name.startswith("mnist"):
                panels = [charts.curves_of(rows, each, "", width=280, height=180) for each in INSIDE]
                # Altair warns that all panels share one selection; here that is intended.
                warnings.filterwarnings("ignore", "Automatically deduplicated", UserWarning)
                chart = charts.configured(alt.concat(*panels, columns=2))
                chart.save(self.charts / f"{name}-inside.png", scale_factor=2)


def compare(name: str, rows: pl.DataFrame, metric: str) -> Iterator[pl.DataFrame]:
    """Each setting's difference from spectral regularization, paired by seed; for strengths, the plateau's width."""
    if name == "strengths":
        means = over_tasks(rows, metric)
        yield means.group_by("method", maintain_order=True).agg(
            best=pl.col("mean").max(),
            decades=pl.struct("strength", "mean").map_batches(
                lambda each: plateau(each.struct.field("strength"), each.struct.field("mean")), returns_scalar=True
            ),
        )
    else:
        for _, part in rows.group_by("step_size", "optimizer", maintain_order=True):
            spectral = part.filter((pl.col("method") == "spectral") & (pl.col("options") == "{}"))
            setting = ("method", "strength", "options", "step_size", "optimizer")
            yield paired(part, spectral, metric).select(*setting, "difference", "low", "high", "wins", "pairs")


def inside(rows: pl.DataFrame) -> pl.DataFrame:
    """Spearman's rank correlation of each diagnostic with accuracy, over all runs.

    ``level`` is a run's mean over the last five tasks, ``growth`` the ratio of this mean to the first task's value.
    """
    value, last = pl.col("value"), pl.col("task") >= pl.col("tasks") - 5
    runs = rows.group_by("run", "metric").agg(
        level=value.filter(last).mean(), growth=value.filter(last).mean() / value.filter(pl.col("task") == 0).first()
    )
    accuracy = runs.filter(pl.col("metric") == "train_accuracy").select("run", accuracy="level")
    return (
        runs.join(accuracy, on="run")
        .group_by("metric")
        .agg(pl.corr(column, "accuracy", method="spearman") for column in ("level", "growth"))
        .sort("level")
    )


def plateau(strengths: pl.Series, means: pl.Series, share: float = 0.9) -> float:
    """The decades of strength over which accuracy, interpolated linearly, is at least this share of its best."""
    decades = strengths.log10().to_numpy()
    fine = np.linspace(decades.min(), decades.max(), 10_001)
    return float(np.ptp(decades) * np.mean(np.interp(fine, decades, means.to_numpy()) >= share * means.max()))


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"train": Train, "tables": Tables})()
