"""The studies of paper.py: which runs each of them compares, and in which order they are trained."""

import json
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from itertools import product
from typing import Any

import polars as pl

from supple.lab.grid import TUNING_SEEDS
from supple.lab.run import Run
from supple.runs.stats import ranking
from supple.runs.store import load, stored

ROOT = "results/paper/runs"
PIECE = 10
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
    "parseval": (1.0, 0.1, 0.01),  # times (64 / n)², 1/16 here
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
PERIODS = (100, 500)
"""Steps between ReDo's resets on Continual ImageNet: one and five tasks, as in Kumar et al.'s code."""
FORMS = ("none", "spectral", "decoupled-spectral")
FEW = ("none", "l2", "l2-init", "spectral", "decoupled-spectral")


def run_of(method: str, strength: float | None, seed: int, problem: str = "random-label-mnist", **changes: Any) -> Run:
    return Run.of(problem, method, [seed], scale="paper", strength=strength, matmul_precision="medium", **changes)


def done(run: Run) -> int:
    """The number of measured tasks of a run."""
    name = run.folder(ROOT).name
    return sum(found.rows["task"].n_unique() for found in stored(ROOT, {name}).values())


def rows_of(runs: list[Run], tasks: int | None = None) -> pl.DataFrame:
    """The measurements of the first ``tasks`` tasks of some runs; by default, of the tasks that all have finished.

    Raises:
        FileNotFoundError: if the runs have no results yet.
    """
    rows = load(ROOT, {run.folder(ROOT).name for run in runs})
    tasks = tasks or min(done(run) for run in runs)
    return rows.filter(pl.col("task") < tasks).with_columns(tasks=pl.lit(tasks))


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


def recycling(period: int) -> list[Run]:
    """The grid of ReDo's thresholds on Continual ImageNet, with this many steps between its resets."""
    return tuning(["redo"], problem="continual-imagenet", options={"every": period})


def continual_imagenet() -> list[Run]:
    """Figure 15, ReDo with each of its periods at the best threshold."""
    metric, problem = "validation_accuracy", "continual-imagenet"
    runs = elsewhere(problem, problem, metric=metric)
    for period in PERIODS:
        runs += reported(["redo"], recycling(period), metric, problem=problem, options={"every": period})
    return runs


def whole_continual_imagenet() -> list[Run]:
    """Figure 15 with all of its tasks, and starting again at each task: a new network with a new Adam."""
    metric, problem = "validation_accuracy", "continual-imagenet"
    new: dict[str, Any] = {"options": {"variant": "task"}, "optimizer": "adam-restarted"}
    again = [run_of("shrink-and-perturb", 1.0, seed, problem, **new) for seed in SEEDS]
    return [*reported(FEW, GRIDS["continual-imagenet-whole"], metric, problem=problem), *again]


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
    "continual-imagenet": [
        *tuning(FEW, problem="continual-imagenet"),
        *(run for period in PERIODS for run in recycling(period)),
    ],
    "continual-imagenet-whole": tuning(FEW, problem="continual-imagenet"),
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
    "continual-imagenet": continual_imagenet,
    "continual-imagenet-whole": whole_continual_imagenet,
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
    ("continual-imagenet", 40),
    ("continual-imagenet-whole", 500),
)
"""The order of training: studies, and the number of tasks to reach."""


def plan(studies: Collection[str], methods: Collection[str]) -> Iterator[tuple[list[Run], int]]:
    """Some of ``PLAN`` as runs of some methods; a grid of strengths precedes the study that needs its best ones."""
    for name, tasks in PLAN:
        if name not in studies:
            continue
        yield GRIDS.get(name, []), PIECE
        yield [run for run in STUDIES[name]() if run.method in methods], tasks
