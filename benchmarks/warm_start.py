"""Data that arrive: is it better to go on with the trained network than to start again, and which method helps?

    python benchmarks/warm_start.py train                                   # minutes for digits, hours for the rest
    python benchmarks/warm_start.py train --problems warm-start-digits      # one problem
    python benchmarks/warm_start.py tables   # rows to results/warm-start, and the tables in docs/warm-start.md

The measure is test accuracy: of a warm start's second task, which has all of the data, and of the last five of ten
chunks. The strength of each form is chosen on another seed by validation accuracy. As in Ash & Adams (2020), every task
begins with a new optimizer.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import polars as pl
import tyro
from forms import Comparison, Form
from measuring import put_into, with_error, with_interval, write_environment

from supple.cli.options import Engine
from supple.runs.stats import last_tasks, paired, ranking

METRIC, CHOSEN_BY = "test_accuracy", "validation_accuracy"
PROBLEMS = ("warm-start-digits", "ten-chunks-digits", "warm-start-mnist", "ten-chunks-mnist", "warm-start-cifar10")
SCRATCH = "from scratch"

restarted = partial(Form, optimizer="adam-restarted")
DECAY = (1e-2, 1e-3, 1e-4)
PULL = (3.0, 1.0, 0.3, 0.1)
FORMS: dict[str, Form] = {
    "warm start": restarted(),
    SCRATCH: restarted(method="shrink-and-perturb", strengths=(1.0,), options={"variant": "task"}),
    "shrink and perturb": restarted(
        method="shrink-and-perturb", strengths=(0.2, 0.4, 0.6, 0.8), options={"variant": "task"}
    ),
    # At strength 0.6, what the authors' code does: 0.4 of the old parameters and 0.1 of new ones.
    "shrink and perturb, 1/6": restarted(
        method="shrink-and-perturb", strengths=(0.2, 0.4, 0.6, 0.8), options={"variant": "task", "perturb": 1 / 6}
    ),
    "FIRE": restarted(method="fire"),
    "spectral": restarted(method="spectral", strengths=DECAY),
    "spectral, decoupled": restarted(method="decoupled-spectral", strengths=PULL),
    "spectral, ceiling": restarted(method="decoupled-spectral", strengths=PULL, options={"target": "initial"}),
    "L2": restarted(method="l2", strengths=DECAY),
    "L2 init": restarted(method="l2-init", strengths=DECAY),
}
COMPARISONS = {
    problem: Comparison(
        problem=problem,
        forms=FORMS,
        metric=CHOSEN_BY,
        protocol={"scale": "quick", "diagnostics": ("weight_norm", "spectral_norm")},
    )
    for problem in PROBLEMS
}


@dataclass(frozen=True, kw_only=True)
class Train(Engine):
    """Train what is missing, one problem and one form after the other."""

    problems: tuple[str, ...] = PROBLEMS
    """Problems of the laboratory."""
    forms: tuple[str, ...] = tuple(FORMS)
    """The forms to compare."""
    seeds: int = 3
    """Number of reported seeds, from 0."""
    out: str = "results/warm-start/runs"
    """Folder for the runs. Those in the repository are finished: any machine goes on from them."""

    def __call__(self) -> None:
        for problem in self.problems:
            for form in self.forms:
                COMPARISONS[problem].measured(form, self.seeds, self.train)


@dataclass(frozen=True, kw_only=True)
class Tables:
    """Write the rows of the forms that are complete, and put a table of each problem into the page."""

    seeds: int = 3
    """Number of reported seeds, as trained."""
    runs: str = "results/warm-start/runs"
    """The folder that was trained into."""
    out: Path = Path("results/warm-start")
    """Folder for the rows."""
    page: Path = Path("docs/warm-start.md")
    """The page with the tables."""

    def __call__(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        trained = set[str]()
        for problem, comparison in COMPARISONS.items():
            complete = comparison.complete(self.seeds, self.runs)
            if complete is None:
                put_into(self.page, problem, ["Not run yet."])
                continue
            tried, rows = complete
            if len(tried):
                tried.filter(metric=CHOSEN_BY).write_parquet(self.out / f"tuning-{problem}.parquet")
            rows.write_parquet(self.out / f"{problem}.parquet")
            trained |= {*tried["run"], *rows["run"]}
            put_into(self.page, problem, table(rows))
        write_environment(self.out, self.runs, trained)


def table(rows: pl.DataFrame) -> Iterator[str]:
    """The lines of a problem's table, the best form first; the last column compares with training from scratch."""
    yield "| | strength | test accuracy | training accuracy | minus from scratch, 95 % |"
    yield "|---|---|---|---|---|"
    scratch = rows.filter(form=SCRATCH)
    learned = dict(last_tasks(rows, "train_accuracy").select("form", "mean").iter_rows())
    above = {row["form"]: row for row in paired(rows, scratch, METRIC).iter_rows(named=True)} if len(scratch) else {}
    for row in ranking(rows, METRIC).iter_rows(named=True):
        name = row["form"]
        strength = f"{row['strength']:g}" if len(FORMS[name].strengths) > 1 else ""
        difference = "" if name == SCRATCH or not above else with_interval(above[name])
        accuracy = with_error(row["mean"], row["error"])
        yield f"| {name} | {strength} | {accuracy} | {learned[name]:.3f} | {difference} |"


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"train": Train, "tables": Tables})()
