"""A narrow ResNet-18 on the shifts of the paper's large networks: what is lost, and which method keeps it?

    python benchmarks/reduced.py pilot --tasks 20    # is anything lost without mitigation?
    python benchmarks/reduced.py train               # hours on one core; resumes where it stopped
    python benchmarks/reduced.py tables              # rows to results/reduced, tables and charts to docs/reduced.md

docs/reduced.md says what is planned, and why. It was written before the runs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import altair as alt
import polars as pl
import tyro
from forms import Comparison, Form
from measuring import put_into, with_error, with_interval, write_environment

from supple.cli.options import Engine
from supple.errors import known
from supple.figures.figure import REDUCED_DIAGNOSTICS
from supple.lab.grid import TUNING_SEEDS, finished, results
from supple.lab.problems import title_of
from supple.lab.run import Run
from supple.runs import charts
from supple.runs.stats import last_tasks, paired, ranking
from supple.runs.tables import title_with_scale

RUNS = "results/reduced/runs"
NONE = "no mitigation"
DECAY = (1e-2, 1e-3, 1e-4)
FORMS = {
    NONE: Form(),
    "L2 init": Form(method="l2-init", strengths=DECAY),
    "spectral": Form(method="spectral", strengths=DECAY),
    "spectral, decoupled": Form(method="decoupled-spectral", strengths=(0.3, 1.0, 3.0)),
    "coupled ceiling": Form(method="spectral", strengths=DECAY, options={"target": "initial"}),
    "L2": Form(method="l2", strengths=DECAY),
    "shrink and perturb": Form(method="shrink-and-perturb", strengths=(1e-3, 1e-4, 1e-5)),
    "ReDo": Form(method="redo"),
    "ReDo, each task": Form(method="redo", strengths=(0.1, 0.025, 0.01), options={"every": 80}),
}
"""In the order of training; ReDo at its default never acts here."""
FOUR = {name: FORMS[name] for name in (NONE, "L2 init", "spectral", "coupled ceiling")}
PROTOCOL = {"scale": "reduced", "diagnostics": REDUCED_DIAGNOSTICS}
COMPARISONS = {
    "random-label-cifar10": Comparison(
        problem="random-label-cifar10", forms=FORMS, metric="online_accuracy", protocol=PROTOCOL
    ),
    "pixel-permutation-cifar10": Comparison(
        problem="pixel-permutation-cifar10", forms=FOUR, metric="validation_accuracy", protocol=PROTOCOL
    ),
}
REPORTED = {"online_accuracy": "online_accuracy", "validation_accuracy": "test_accuracy"}
"""The metric that is reported, by the one that strengths are chosen by."""


@dataclass(frozen=True, kw_only=True)
class Pilot(Engine):
    """Train without mitigation on the tuning seed."""

    problems: tuple[str, ...] = tuple(COMPARISONS)
    """Problems of the laboratory."""
    tasks: int | None = None
    """Number of tasks; as many as at reduced scale when left out."""
    epochs: int | None = None
    """Epochs per task; likewise."""
    out: str = RUNS
    """Folder for the runs."""

    def __call__(self) -> None:
        changes = {"tasks": self.tasks, "epochs": self.epochs}
        self.train([Run.of(problem, "none", [TUNING_SEEDS], **PROTOCOL, **changes) for problem in self.problems])


@dataclass(frozen=True, kw_only=True)
class Train(Engine):
    """Train what is missing, one problem and one form after the other."""

    problems: tuple[str, ...] = tuple(COMPARISONS)
    """Problems of the laboratory."""
    forms: tuple[str, ...] = tuple(FORMS)
    """The forms to compare; a problem has only some of them."""
    seeds: int = 3
    """Number of reported seeds, from 0."""
    out: str = RUNS
    """Folder for the runs. Those in the repository are finished: any machine goes on from them."""

    def __call__(self) -> None:
        for problem in self.problems:
            for form in self.forms:
                if known(form, FORMS, "form") in COMPARISONS[problem].forms:
                    COMPARISONS[problem].measured(form, self.seeds, self.train)


@dataclass(frozen=True, kw_only=True)
class Tables:
    """Write the rows of the forms that are complete, draw them, and put a table of each problem into the page."""

    seeds: int = 3
    """Number of reported seeds, as trained."""
    runs: str = RUNS
    """The folder that was trained into."""
    out: Path = Path("results/reduced")
    """Folder for the rows."""
    page: Path = Path("docs/reduced.md")
    """The page with the tables; the charts lie beside it."""

    def __call__(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        pilots = results(
            [run for run in finished(self.runs) if run.method == "none" and TUNING_SEEDS in run.seeds], self.runs
        )
        pilots.write_parquet(self.out / "pilots.parquet")
        put_into(self.page, "pilots", pilots_table(pilots))
        trained = {*pilots["run"]}
        for problem, comparison in COMPARISONS.items():
            complete = comparison.complete(self.seeds, self.runs)
            if complete is None:
                put_into(self.page, problem, ["Not run."])
                continue
            tried, rows = complete
            tried.write_parquet(self.out / f"tuning-{problem}.parquet")
            rows.write_parquet(self.out / f"{problem}.parquet")
            trained |= {*tried["run"], *rows["run"]}
            metric, picture = REPORTED[comparison.metric], f"reduced-{problem}.png"
            draw(rows, metric).save(self.page.with_name(picture), scale_factor=2)
            alt_text = (
                f"{title_of(problem)}, reduced scale: {metric.replace('_', ' ')} of each task, a line for each method"
            )
            put_into(self.page, problem, [*table(rows, metric), "", f"![{alt_text}]({picture})"])
        write_environment(self.out, self.runs, trained)


def pilots_table(rows: pl.DataFrame) -> Iterator[str]:
    """The lines of the pilots' table: the measure of each problem, and how fast each task is learned."""
    yield "| problem | epochs | tasks | at the end: first task | last three | online: first task | last three |"
    yield "|---" * 7 + "|"
    for _, run in rows.sort("problem", "epochs", "tasks", descending=[True, True, False]).group_by(
        "run", maintain_order=True
    ):
        problem = run["problem"][0]
        cells = [problem, str(run["epochs"][0]), str(run["tasks"][0])]
        at_the_end = "test_accuracy" if "test_accuracy" in run["metric"] else "train_accuracy"
        for metric in (at_the_end, "online_accuracy"):
            values = run.filter(metric=metric).sort("task")["value"]
            cells += [f"{values[0]:.3f}", f"{values[-3:].mean():.3f}"]
        yield f"| {' | '.join(cells)} |"


def table(rows: pl.DataFrame, metric: str) -> Iterator[str]:
    """The lines of a problem's table, the best form first; the last column compares with no mitigation."""
    yield "| | strength | first task | last five tasks | training accuracy | σ₁ | minus no mitigation, 95 % |"
    yield "|---" * 7 + "|"
    differences = paired(rows, rows.filter(form=NONE), metric)
    above = {row["form"]: with_interval(row) for row in differences.iter_rows(named=True)} | {NONE: ""}
    learned, sigma = (
        dict(last_tasks(rows, other).select("form", "mean").iter_rows())
        for other in ("train_accuracy", "spectral_norm")
    )
    for row in ranking(rows, metric).iter_rows(named=True):
        form = row["form"]
        strength = f"{row['strength']:g}" if len(FORMS[form].strengths) > 1 else ""
        accuracy = with_error(row["mean"], row["error"])
        yield (
            f"| {form} | {strength} | {row['first']:.3f} | {accuracy} "
            f"| {learned[form]:.3f} | {sigma[form]:.2f} | {above[form]} |"
        )


def draw(rows: pl.DataFrame, metric: str) -> alt.LayerChart:
    """A metric of each task, a line for each method; ReDo, which changed nothing, would cover no mitigation."""
    seeds = charts.over_seeds(rows["seed"].n_unique())
    title = title_with_scale(rows, title_of(rows["problem"][0]))
    drawn = rows.filter(pl.col("method") != "redo").drop("form")
    return charts.configured(charts.curves_of(drawn, metric, title, f"narrow ResNet-18, {seeds}"))


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"pilot": Pilot, "train": Train, "tables": Tables})()
