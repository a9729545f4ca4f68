"""Which diagnostic at the end of a task foretells the next task, beyond what today's accuracy tells?

    python benchmarks/readiness.py            # if results/early-warning/readiness.parquet is missing
    python benchmarks/early_warning.py        # minutes on one core; tables to results/early-warning

It reads the committed rows of single tasks. Each candidate is a diagnostic as it is, divided by its value at the end of
the first task, or divided by its value before training. Four tables:

``correlations``  Spearman's rank correlation of each candidate with the next task's accuracy and with the loss against
                  the first task; ``partial``: given what is known without it, which is today's accuracy, or today's
                  loss against the first task
``predictions``   how much smaller the mean absolute error becomes if a predictor has the candidate besides today's
                  accuracy; fitted without the method that it predicts, or on MNIST for another problem
``events``        the task at which each run lost its accuracy
``alarms``        a threshold chosen on one problem, and its alarms on all others

Networks with one method resemble each other, so intervals are of a bootstrap that draws whole methods; those that draw
single runs are there too (``run_low``, ``run_high``), and are too narrow.

Fixed before any alarm was computed: a run loses its accuracy at the first task from which on the accuracy at every
task's end stays below 0.95 times the best so far, for at least two tasks. An alarm hits if it is raised before that
task's end. An alert worth having would, with a threshold from one problem, hit at least 80 % of the losing runs of the
other problems, with false alarms in at most 10 % of the runs that keep their accuracy.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import tyro
from early_warning_chart import chart
from early_warning_statistics import CORRELATIONS, errors, interval, moments, ranks, ratio, skill
from measuring import use_threads, write_environment
from rich.progress import track

from supple.lab.run import Run
from supple.lab.trainer import Trainer
from supple.runs import charts
from supple.training.methods import METHODS

PROBLEMS = {  # title: file, and its rows
    "MNIST": ("paper/mnist", pl.lit(True)),
    "MNIST, LayerNorm": ("paper/mnist-layer-norm", pl.lit(True)),
    "MNIST, fresh Adam": ("paper/adam", pl.col("optimizer") != "adam"),
    "MNIST, LayerNorm, fresh Adam": ("paper/adam-layer-norm", pl.col("optimizer") != "adam"),
    "digits": ("digits/rows", pl.lit(True)),
    "Fashion-MNIST": ("paper/fashion-mnist", pl.lit(True)),
    "EMNIST, labels": ("paper/label-flip", pl.lit(True)),
    "EMNIST, pixels": ("paper/pixel-permutation", pl.lit(True)),
    "digits, readiness": ("early-warning/readiness", pl.lit(True)),
}
SOURCES = ("MNIST", "digits")
"""The problems on which thresholds are chosen."""
LIVE = {"dead_units": "live_units", "dormant_units": "active_units"}
"""Shares that begin at zero, and their complements, which can be divided by."""
DIAGNOSTICS = (
    *("spectral_norm", "smallest_singular_value", "stable_rank", "effective_rank", "weight_norm"),
    *("distance_from_initialization", "active_units", "live_units", "feature_rank", "representation_change"),
    *("gradient_norm", "gradient_effective_rank", "readiness", "gradient_strength", "gradient_reliability"),
)
KNOWN = ("accuracy today", "train_loss", "accuracy / best", "accuracy / first", "tasks")
"""What is known without a diagnostic: a good candidate must be better than these."""
FIRST, INITIAL = " / first", " / initial"
CANDIDATES = (*KNOWN, *DIAGNOSTICS, *(name + form for form in (FIRST, INITIAL) for name in DIAGNOSTICS))
LOSS, TASKS_LOST, KEYS = 0.95, 2, ("problem", "method", "run")
TARGETS = {"next": "accuracy", "lost": "lost_now"}
"""What is to be foretold, and what is known of it without a diagnostic."""


@dataclass(frozen=True, kw_only=True)
class EarlyWarning:
    """Which diagnostic foretells the next task's accuracy, beyond today's accuracy."""

    results: Path = Path("results")
    """The folder of the committed rows."""
    out: Path = Path("results/early-warning")
    """Folder for the tables."""
    charts: Path = Path("runs/early-warning")
    """Folder for the chart."""

    def __call__(self) -> None:
        use_threads(1)
        self.out.mkdir(parents=True, exist_ok=True)
        initial = self.out / "initial.parquet"
        known = [pl.read_parquet(initial)] if initial.exists() else []
        before = pl.concat([*known, *measured_before_training(self.results, known)], how="vertical")
        before.write_parquet(initial)
        tasks = pl.concat([by_task(self.results, title, before) for title in PROBLEMS], how="diagonal")
        pairs, lost = tasks.filter(pl.col("next").is_not_null()), events(tasks)
        tables = {
            "correlations": correlations(pairs),
            "predictions": predictions(pairs),
            "events": lost,
            "alarms": alarms(tasks, lost),
        }
        for name, table in tables.items():
            table.write_parquet(self.out / f"{name}.parquet")
        write_environment(self.out)
        charts.save(chart(tables["correlations"], (*DIAGNOSTICS, "tasks")), self.charts)


def rows_of(results: Path, title: str) -> pl.DataFrame:
    """The committed rows of a problem, with a name for each run."""
    file, chosen = PROBLEMS[title]
    rows = pl.read_parquet(results / f"{file}.parquet").filter(chosen)
    settings = [name for name in ("method", "optimizer", "strength", "seed") if name in rows.columns]
    return rows.with_columns(problem=pl.lit(title), run=pl.concat_str(settings, separator=" "))


def measured_before_training(results: Path, known: Sequence[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """The diagnostics before the first task of those runs' networks that are not known.

    Methods that share a network share the values.
    """
    index = ("title", "method", "seed")
    measured = {key for rows in known for key in rows.select(index).iter_rows()}
    of_network = dict[Any, dict[str, float]]()
    for title, (file, chosen) in track(PROBLEMS.items(), "networks before training"):
        if file.startswith("early-warning"):
            continue  # has its own
        columns = ["problem", "scale", "model", "method", "seed"]
        for row in pl.read_parquet(results / f"{file}.parquet").filter(chosen).select(columns).unique().to_dicts():
            if (title, row["method"], row["seed"]) in measured:
                continue
            method = row["method"] if METHODS[row["method"]].network else "none"
            key = (row["problem"], row["scale"], row["model"], method, row["seed"])
            if key not in of_network:
                run = Run.of(row["problem"], method, [row["seed"]], scale=row["scale"], model=row["model"])
                values = Trainer(run, compiled=False).probe.measure()
                of_network[key] = {name: value.item() for name, value in values.items()}
            values = {"title": title, "method": row["method"], "seed": row["seed"], **of_network[key]}
            yield pl.DataFrame([values]).unpivot(index=index, variable_name="metric")


def by_task(results: Path, title: str, before: pl.DataFrame) -> pl.DataFrame:
    """One row for each run and task: accuracies and candidates; ``next`` is null at a run's last task."""
    rows = rows_of(results, title)
    if not (rows["task"] == -1).any():
        names = rows.select("problem", "method", "seed", "run").unique()
        beginning = before.filter(pl.col("title") == title).join(names, on=["method", "seed"])
        rows = pl.concat([beginning.with_columns(task=-1), rows], how="diagonal_relaxed")
    wide = rows.pivot("metric", index=[*KEYS, "task"], values="value", aggregate_function="first").sort("run", "task")
    wide = wide.with_columns((1 - pl.col(name)).alias(live) for name, live in LIVE.items())
    measured = [name for name in DIAGNOSTICS if name in wide.columns]
    divided = [
        (pl.col(name) / pl.col(name).filter(pl.col("task") == task).first().over("run")).alias(name + form)
        for name in measured
        for form, task in ((FIRST, 0), (INITIAL, -1))
    ]
    accuracy = pl.col("accuracy")
    wide = wide.with_columns(divided).filter(pl.col("task") >= 0).rename({"train_accuracy": "accuracy"})
    wide = wide.with_columns(
        next=accuracy.shift(-1).over("run", order_by="task"),
        first=accuracy.filter(pl.col("task") == 0).first().over("run"),
        best=accuracy.cum_max().over("run", order_by="task"),
        tasks=pl.col("task").cast(pl.Float64),
    ).with_columns(
        accuracy.alias("accuracy today"),
        (accuracy / pl.col("best")).alias("accuracy / best"),
        (accuracy / pl.col("first")).alias("accuracy / first"),
        lost=pl.col("first") - pl.col("next"),
        lost_now=pl.col("first") - accuracy,
    )
    candidates = [name for name in CANDIDATES if name in wide.columns]
    kept = [*KEYS, "task", "accuracy", "next", "first", "best", "lost", "lost_now", *candidates]
    finite = pl.when(pl.col(candidates).is_finite()).then(pl.col(candidates))
    return wide.select(kept).with_columns(finite)


def events(tasks: pl.DataFrame) -> pl.DataFrame:
    """By run, the first task of its loss; null for a run that keeps its accuracy."""
    low = pl.col("accuracy") < LOSS * pl.col("best")
    last_good = pl.col("task").filter(~low).max()
    lost = tasks.group_by(KEYS, maintain_order=True).agg(lost=last_good + 1, tasks=pl.col("task").max() + 1)
    kept = pl.col("lost") > pl.col("tasks") - TASKS_LOST
    return lost.with_columns(lost=pl.when(~kept).then(pl.col("lost")))


def correlations(pairs: pl.DataFrame) -> pl.DataFrame:
    """All candidates' rank correlations on each problem: over all its runs, and within a run, averaged over runs."""
    rows = []
    for problem, name, known in track(list(present(pairs)), "correlations"):
        for target, now in TARGETS.items():
            runs = known.partition_by("run", maintain_order=True)
            methods = [run["method"][0] for run in runs]
            values = known.select(name, target, now).to_numpy().T
            lengths = [len(run) for run in runs]
            stated = {"problem": problem, "candidate": name, "target": target}
            sums = moments(ranks(values), lengths)
            rows += [
                stated | {"kind": kind, "within": False} | interval(sums, methods, statistic)
                for kind, statistic in CORRELATIONS.items()
            ]
            if target != "next":
                continue  # within a run it differs only in its sign
            starts = np.cumsum(lengths)[:-1]
            own = np.concatenate([moments(ranks(part), [part.shape[1]]) for part in np.split(values, starts, axis=1)])
            for kind, statistic in CORRELATIONS.items():
                of_run = statistic(own)
                kept = np.flatnonzero(np.isfinite(of_run))
                if len(kept):
                    of_kept = np.stack([of_run[kept], np.ones(len(kept))], axis=1)
                    within = interval(of_kept, [methods[i] for i in kept], ratio)
                    rows.append(stated | {"kind": kind, "within": True} | within)
    return pl.DataFrame(rows)


def present(pairs: pl.DataFrame) -> Iterator[tuple[str, str, pl.DataFrame]]:
    """Each problem with each candidate that it has, and its pairs for which the candidate is known."""
    for (problem,), of_problem in pairs.group_by("problem", maintain_order=True):
        for name in filter(of_problem.columns.__contains__, CANDIDATES):
            known = of_problem.drop_nulls(name)
            if known[name].n_unique() > 1:
                yield problem, name, known


def predictions(pairs: pl.DataFrame) -> pl.DataFrame:
    """All candidates' ``skill``: one minus the ratio of the errors with and without the candidate."""
    rows = []
    source = pairs.filter(pl.col("problem") == SOURCES[0])
    for problem, name, known in track(list(present(pairs)), "predictions"):
        for target, now in TARGETS.items():
            columns = [name, now, target]
            of_methods = known.partition_by("method", as_dict=True, maintain_order=True)
            fits = {"other methods": [(known.filter(pl.col("method") != m), part) for (m,), part in of_methods.items()]}
            if problem != SOURCES[0] and name in source.columns and source[name].count():
                fits[SOURCES[0]] = [(source.drop_nulls(name), known)]
            for fitted_on, parts in fits.items():
                error, methods = [], []
                for fitted, tested in parts:
                    absolute = errors(fitted.select(columns).to_numpy(), tested.select(columns).to_numpy())
                    of_run = tested.select("method", "run").with_columns(with_it=absolute[0], without=absolute[1])
                    of_run = of_run.group_by("method", "run", maintain_order=True).mean()
                    error.append(of_run.select("with_it", "without").to_numpy())
                    methods += of_run["method"].to_list()
                stated = {"problem": problem, "candidate": name, "target": target, "fitted_on": fitted_on}
                rows.append(stated | interval(np.concatenate(error), methods, skill))
    return pl.DataFrame(rows)


def alarms(tasks: pl.DataFrame, lost: pl.DataFrame) -> pl.DataFrame:
    """For each candidate and source: the threshold that is best there, and what it does on every problem."""
    rows = []
    tasks = tasks.join(lost.select(*KEYS, event="lost"), on=KEYS, maintain_order="left")
    known = {(problem, name): frame for problem, name, frame in present(tasks)}
    for source in SOURCES:
        for name in CANDIDATES:
            if (source, name) not in known:
                continue
            sign, threshold = best_threshold(known[source, name], name)
            for (problem, candidate), frame in known.items():
                if candidate == name:
                    stated = {"source": source, "candidate": name, "falls": sign < 0, "threshold": threshold}
                    rows.append(stated | {"problem": problem} | raised(frame, name, sign, threshold))
    return pl.DataFrame(rows)


def best_threshold(frame: pl.DataFrame, name: str) -> tuple[int, float]:
    """The direction (1: rises above, -1: falls below) and the threshold with the most hits less false alarms.

    Of equally good thresholds it is in the middle of the widest gap between the runs' extreme values.
    """
    choices = []
    in_time = pl.col("event").is_null() | (pl.col("task") < pl.col("event"))
    for sign in (1, -1):
        largest = (sign * pl.col(name)).max().alias("x")
        extremes = frame.filter(in_time).group_by(KEYS).agg(largest, pl.col("event").first())
        x, loses = extremes["x"].to_numpy(), extremes["event"].is_not_null().to_numpy()
        values = np.unique(x)
        for low, high in pairwise(values):
            over = x > (low + high) / 2
            choices.append((over[loses].mean() - over[~loses].mean(), high - low, sign, sign * (low + high) / 2))
    _, _, sign, threshold = max(choices)
    return sign, float(threshold)


def raised(frame: pl.DataFrame, name: str, sign: int, threshold: float) -> dict[str, Any]:
    """What an alarm at this threshold does: counts of runs, and the median lead in tasks of the hits.

    Hits are ``early`` if the accuracy had not yet been below the limit once.
    """
    over = sign * pl.col(name) > sign * threshold
    runs = frame.group_by(KEYS).agg(
        at=pl.col("task").filter(over).min(),
        event=pl.col("event").first(),
        dropped=pl.col("task").filter(pl.col("accuracy") < LOSS * pl.col("best")).min(),
    )
    losing, keeping = runs.filter(pl.col("event").is_not_null()), runs.filter(pl.col("event").is_null())
    lead = losing["event"] - losing["at"]
    return {
        "losing": len(losing),
        "hits": int((lead > 0).sum()),
        "early": int(((lead > 0) & (losing["at"] < losing["dropped"])).sum()),
        "late": int((lead <= 0).sum()),
        "keeping": len(keeping),
        "false": int(keeping["at"].is_not_null().sum()),
        "lead": lead.filter(lead > 0).median(),
    }


if __name__ == "__main__":
    tyro.cli(EarlyWarning)()
