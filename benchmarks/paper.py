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
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl
import tyro
from measuring import plateau, put_into, with_error, with_interval, write_environment
from paper_studies import GRIDS, PIECE, ROOT, STRENGTHS, STUDIES, done, plan, rows_of
from rich.console import Console

from supple.lab import problems
from supple.lab.run import Run
from supple.lab.trainer import train
from supple.runs import charts, sweep
from supple.runs.progress import progress_of
from supple.runs.stats import over_tasks, paired, ranking
from supple.runs.tables import results_table
from supple.training.methods import title_of

INSIDE = (
    "train_accuracy",
    "spectral_norm",
    "representation_change",
    "gradient_effective_rank",
    "stable_rank",
    "feature_rank",
)
"""The metrics of Figures 3 and 14, which are drawn for every run."""

SERIES = {"exponents": "options", "step-sizes": "step_size", "adam": "optimizer", "adam-layer-norm": "optimizer"}
"""The setting that determines a line's colour in a study's chart, if not the method."""

CYCLE = 25
"""Tasks of Continual ImageNet in which each of its 50 classes is seen once; single tasks differ too much to draw."""

TITLES = {
    "mnist": "Random labels, MNIST",
    "mnist-layer-norm": "Random labels, MNIST, with LayerNorm",
    "fashion-mnist": "Random labels, Fashion-MNIST",
    "label-flip": "Label flip, EMNIST",
    "pixel-permutation": "Pixel permutation, EMNIST",
    "continual-imagenet-whole": f"Continual ImageNet, means over {CYCLE} tasks",
    "strengths": "Strengths, MNIST",
    "exponents": "Exponents of spectral regularization, MNIST",
    "step-sizes": "Step sizes, MNIST",
    "adam": "Three forms of Adam, MNIST",
    "adam-layer-norm": "Three forms of Adam, MNIST, with LayerNorm",
}
"""The studies that are drawn; others of Continual ImageNet are too short to show a trend among such different tasks."""

COLOURED = {"mnist-layer-norm": ("none", "spectral", "decoupled-spectral", "shrink-and-perturb")}
"""The methods in colour where lines swing so much that few can be told apart: the best one of others is among them."""

OPTIMIZERS = {"adam": "Adam", "adam-equal-betas": "Adam, equal betas", "adam-restarted": "Adam restarted"}


def piece(run: Run, report: Any, *, tasks: int) -> bool:
    """Train the next ten tasks of a run; return whether it needs more to reach ``tasks``."""
    train(run, report, root=ROOT, pieces=run.tasks // PIECE)
    return done(run) < tasks


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train what is missing: the next ten tasks of all runs before any later ones.

    A run that needs more tasks than it has here, but whose checkpoint is on another machine, begins again.
    """

    workers: int | None = None
    """Processes at a time, with one thread each; as many as the cores allow when left out."""
    studies: tuple[str, ...] = tuple(STUDIES)
    """Studies to train now; those on MNIST take their strengths from the grid of ``mnist``."""
    methods: tuple[str, ...] = tuple(STRENGTHS)
    """Methods to compare now; grids of strengths are always trained in full."""

    def __call__(self) -> None:
        for runs, tasks in plan(self.studies, self.methods):
            left = [run for run in dict.fromkeys(runs) if done(run) < tasks]
            if left:
                with progress_of({run: (run.method, tasks) for run in left}) as report:
                    sweep.work_through(left, partial(piece, tasks=tasks), workers=self.workers, report=report)


@dataclass(frozen=True, kw_only=True)
class Tables:
    """Write the rows of all results so far, draw them, and print tables.

    Of a study whose runs are not on this machine, the rows in the repository are drawn and printed.
    """

    studies: tuple[str, ...] = tuple(STUDIES)
    """Studies to write; most take their strengths from the grid of ``mnist``."""
    out: Path = Path("results/paper")
    """Folder for the rows."""
    charts: Path = Path("docs/paper")
    """Folder for the charts."""
    page: Path = Path("docs/reproduction.md")
    """The page with the tables of Continual ImageNet."""

    def __call__(self) -> None:
        for folder in (self.out, self.charts):
            folder.mkdir(parents=True, exist_ok=True)
        console = Console()
        pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=120, float_precision=4, tbl_hide_column_data_types=True)
        for name in self.studies:
            metric, kept, grid = metric_of(name), self.out / f"{name}.parquet", GRIDS.get(name, [])
            if all(done(run) >= PIECE for run in grid or GRIDS["mnist"]) and all(map(done, runs := STUDIES[name]())):
                if grid:
                    chosen = rows_of(grid, PIECE)
                    chosen.write_parquet(self.out / f"tuning-{name}.parquet")
                    console.print("For choosing the strength:", results_table(chosen, metric))
                rows_of(runs).write_parquet(kept)
                write_environment(self.out / name, ROOT, set(pl.read_parquet(kept)["run"]))
            elif not kept.exists():
                console.print(f"{name}: not all of it has been begun\n")
                continue
            rows = pl.read_parquet(kept)  # where its runs are not here, those of another machine
            if name.startswith("continual-imagenet"):
                put_into(self.page, name, table_in_tens(named(rows), metric))
            if name in TITLES:
                draw(name, rows, self.charts)
            for first in sorted({min(PIECE, rows["tasks"][0]), rows["tasks"][0]}):  # of most studies, and of this one
                part = rows.filter(pl.col("task") < first).with_columns(tasks=pl.lit(first))
                console.print(f"The first {first} tasks:", results_table(part, metric))
                for compared in compare(name, part, metric):
                    print(compared)
                if name.startswith("mnist"):
                    print(inside(part))


def draw(name: str, rows: pl.DataFrame, folder: Path) -> None:
    """The charts of a study."""
    metric, planned = metric_of(name), problems.find(rows["problem"][0]).protocol("paper")["tasks"]
    done = f"{rows['tasks'][0]} of {planned} tasks, {charts.over_seeds(rows['seed'].n_unique())}"
    series = SERIES.get(name, "method")
    if name == "continual-imagenet-whole":
        rows = means_over(CYCLE, named(rows)).with_columns(task=pl.col("task") * CYCLE + CYCLE // 2)
    if name == "exponents":
        rows = rows.with_columns(options=pl.col("options").replace("{}", '{"exponent": 2}'))
    if series == "optimizer":
        rows = rows.with_columns(pl.col("optimizer").replace(OPTIMIZERS))
    if name == "strengths":
        chart = charts.sensitivity_of(rows, metric, f"{TITLES[name]}, {done}")
    else:
        chart = charts.curves_of(rows, metric, TITLES[name], done, series=series, coloured=COLOURED.get(name))
    charts.configured(chart).save(folder / f"{name}.png", scale_factor=2)
    if name.startswith("mnist"):
        panels = [
            charts.curves_of(rows, diagnostic, "", width=280, height=180, coloured=COLOURED.get(name))
            for diagnostic in INSIDE
        ]
        with charts.shared_selections():
            title = alt.Title(f"{TITLES[name]}: inside the networks", subtitle=done, anchor="start")
            chart = charts.configured(alt.concat(*panels, columns=2, title=title))
        chart.save(folder / f"{name}-inside.png", scale_factor=2)


def table_in_tens(rows: pl.DataFrame, metric: str) -> Iterator[str]:
    """The lines of a table of means over ten tasks, the best setting first; differences are from no mitigation."""
    tens = means_over(10, rows)
    differences = paired(tens, tens.filter(method="none"), metric, tens["tasks"][0])
    setting = ("method", "strength", "options")
    whole = over_tasks(tens, metric).join(differences, on=setting)
    ranked = whole.join(ranking(tens, metric, 1), on=setting, suffix="_last")
    head = ("tasks 1 to 10", "the last ten", f"all {rows['tasks'][0]}", "minus `none` from task 11 on, 95 %")
    yield f"| method | strength | {' | '.join(head)} |"
    yield "|---|---|---|---|---|---|"
    for row in ranked.sort("mean", descending=True).iter_rows(named=True):
        is_none = row["method"] == "none"
        cells = (
            ", ".join(
                [title_of(row["method"]), *(f"{key} {value}" for key, value in json.loads(row["options"]).items())]
            ),
            f"{row['strength']:g}" if row["strength"] else "",
            f"{row['first']:.3f}",
            with_error(row["mean_last"], row["error_last"]),
            with_error(row["mean"], row["error"]),
            "" if is_none else with_interval(row),
        )
        yield f"| {' | '.join(cells)} |"


def named(rows: pl.DataFrame) -> pl.DataFrame:
    """Continual ImageNet's rows, in which a new network with a new Adam at each task is called starting again."""
    again = pl.col("optimizer") == "adam-restarted"
    return rows.with_columns(
        method=pl.when(again).then(pl.lit("starting again")).otherwise("method"),
        options=pl.when(again).then(pl.lit("{}")).otherwise("options"),
        strength=pl.when(again).then(0.0).otherwise("strength"),
    )


def means_over(tasks: int, rows: pl.DataFrame) -> pl.DataFrame:
    """Measurements in which ``tasks`` tasks in a row count as one: their mean."""
    fewer = rows.with_columns(pl.col("task", "tasks") // tasks)
    return fewer.group_by(pl.exclude("value"), maintain_order=True).agg(pl.mean("value"))


def metric_of(name: str) -> str:
    """The metric of a study."""
    return "test_accuracy" if name.startswith("continual-imagenet") else "train_accuracy"


def compare(name: str, rows: pl.DataFrame, metric: str) -> Iterator[pl.DataFrame]:
    """Each setting's difference from spectral regularization, paired by seed; for strengths, the plateau's width."""
    if name == "strengths":
        means = over_tasks(rows, metric)
        yield means.group_by("method", maintain_order=True).agg(
            best=pl.col("mean").max(),
            decades=pl.struct("strength", "mean").map_batches(
                lambda pairs: plateau(
                    pairs.struct.field("strength"),
                    pairs.struct.field("mean"),
                    0.9 * float(pairs.struct.field("mean").to_numpy().max()),
                ),
                returns_scalar=True,
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


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"train": Train, "tables": Tables})()
