"""Methods that hold the size of the weights, side by side: how much accuracy each keeps, and over which strengths.

    python benchmarks/norm_control.py train       # about an hour on one core, without Muon; resumes where it was stopped
    python benchmarks/norm_control.py tables      # results so far: rows, chart and table of docs/norm-control.md

    python benchmarks/norm_control.py train --problem random-label-mnist --scale paper    # days

Every method is tried at strengths a factor of ten apart, on one seed, by the mean training accuracy of the last five
tasks; the reported seeds, at the best strength, are different ones.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import altair as alt
import polars as pl
import tyro
from measuring import plateau, write_environment

from supple.cli.options import Engine
from supple.lab.grid import TUNING_SEEDS, finished, results
from supple.lab.run import Run
from supple.runs import charts
from supple.runs.stats import last_tasks
from supple.training.methods import METHODS

METRIC = "train_accuracy"
NEAR = 0.02
"""A plateau is the range of strengths with an accuracy within so much of the method's best."""


def decades(low: int, high: int) -> tuple[float, ...]:
    return tuple(10.0**power for power in range(low, high + 1))


@dataclass(frozen=True, kw_only=True)
class Form:
    """A method, with options and an optimizer, and the strengths to try."""

    method: str
    strengths: tuple[float, ...] = ()
    """None for a method without a strength that is worth tuning: its default is taken."""
    options: Mapping[str, Any] = field(default_factory=dict)
    optimizer: str = "adam"

    def run(self, problem: "Problem", seed: int, strength: float | None = None) -> Run:
        return Run.of(
            problem.problem,
            self.method,
            [seed],
            scale=problem.scale,
            strength=strength,
            options=self.options,
            optimizer=self.optimizer,
            matmul_precision="highest" if problem.scale == "quick" else "medium",
            diagnostics=(),
        )

    def grid(self, problem: "Problem") -> list[Run]:
        return [self.run(problem, TUNING_SEEDS, strength) for strength in self.strengths]

    def reported(self, problem: "Problem", tuned: pl.DataFrame | None) -> list[Run]:
        """The runs of the reported seeds, at the best strength of the grid."""
        best = None if tuned is None else last_tasks(tuned, METRIC).sort("mean")["strength"][-1]
        return [self.run(problem, seed, best) for seed in range(problem.seeds)]


SPECTRAL_DECAY = {"method": "decoupled-spectral", "strengths": decades(-2, 2)}
FORMS: dict[str, Form] = {
    "no mitigation": Form(method="none"),
    "FIRE": Form(method="fire"),
    "deep Fourier features": Form(method="fourier-features"),
    "spectral, coupled": Form(method="spectral", strengths=decades(-5, 0)),
    "spectral, decoupled": Form(**SPECTRAL_DECAY),
    "spectral, ceiling": Form(**SPECTRAL_DECAY, options={"target": "initial"}),
    "Parseval, coupled": Form(method="parseval", strengths=decades(-3, 2)),
    "Parseval, decoupled": Form(method="parseval", strengths=decades(-2, 3), options={"decoupled": True}),
    "weight clipping": Form(method="weight-clipping", strengths=decades(-2, 1)),
    "normalize and project": Form(method="normalize-and-project"),
    "LayerNorm": Form(method="layer-norm"),
    "no mitigation, Adam restarted": Form(method="none", optimizer="adam-restarted"),
    "FIRE, Adam restarted": Form(method="fire", optimizer="adam-restarted"),
    "Muon": Form(method="none", optimizer="muon"),
    "Muon, spectral decay": Form(**SPECTRAL_DECAY, optimizer="muon"),
}
"""In the order of training. Muon comes last: on a CPU its step takes ten times as long as Adam's."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What the forms are compared on."""

    problem: str = "random-label-digits"
    """A problem of the laboratory, such as `random-label-mnist`."""
    scale: Literal["quick", "paper"] = "quick"
    """`paper` is the published protocol."""
    seeds: int = 3
    """Number of reported seeds, from 0."""
    forms: tuple[str, ...] = tuple(FORMS)
    """The forms to compare."""


@dataclass(frozen=True, kw_only=True)
class Train(Problem, Engine):
    """Train what is missing, one form after the other."""

    out: str = "runs/norm-control"
    """Folder for the runs."""

    def __call__(self) -> None:
        for name in self.forms:
            grid = FORMS[name].grid(self)
            self.train(FORMS[name].reported(self, self.train(grid) if grid else None))


@dataclass(frozen=True, kw_only=True)
class Tables(Problem):
    """Write the rows of the forms that are complete, draw them, and print the table."""

    runs: str = "runs/norm-control"
    """The folder that was trained into."""
    out: Path = Path("results/norm-control")
    """Folder for the rows."""
    chart: Path = Path("docs/norm-control.png")
    """File of the chart."""

    def __call__(self) -> None:
        grids, reported = zip(*self.complete(), strict=True)
        grid, rows = pl.concat(grids), pl.concat(reported)
        self.out.mkdir(parents=True, exist_ok=True)
        grid.write_parquet(self.out / "tuning.parquet")
        rows.write_parquet(self.out / "rows.parquet")
        write_environment(self.out, self.runs, {*grid["run"], *rows["run"]})
        draw(grid, rows, self.problem).save(self.chart, scale_factor=2)
        print("\n".join(table(grid, rows)))

    def complete(self) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
        """The measurements of the grid and of the reported seeds, for each form that has them all."""
        done = finished(self.runs)
        for name in self.forms:
            form, label = FORMS[name], pl.lit(name).alias("form")
            grid = form.grid(self)
            if done.keys() >= {*grid}:
                tuned = results(grid, self.runs) if grid else None
                reported = form.reported(self, tuned)
                if done.keys() >= {*reported}:
                    rows = results(reported, self.runs)
                    yield (rows.clear() if tuned is None else tuned).with_columns(label), rows.with_columns(label)
                    continue
            print(f"{name}: not trained yet")


def table(grid: pl.DataFrame, rows: pl.DataFrame) -> Iterator[str]:
    """The lines of the page's table, the best form first."""
    yield "| | strength | first task | last five tasks | strengths tried | plateau, decades |"
    yield "|---|---|---|---|---|---|"
    tuned = last_tasks(grid, METRIC)
    first = last_tasks(rows.filter(pl.col("task") == 0).with_columns(tasks=1), METRIC, 1)
    for row in last_tasks(rows, METRIC).sort("mean", descending=True).iter_rows(named=True):
        name, of_form = row["form"], pl.col("form") == row["form"]
        begun = first.filter(of_form)["mean"].item()
        tried = tuned.filter(of_form).sort("strength")
        cells = ["", "", ""]
        if len(tried):
            strengths, means = tried["strength"], tried["mean"]
            low, high = strengths[0], strengths[-1]
            width = plateau(strengths, means, means.max() - NEAR)
            open_ended = "≥ " if max(means[0], means[-1]) >= means.max() - NEAR else ""
            cells = [f"{row['strength']:g}", f"{low:g} to {high:g}", f"{open_ended}{width:.1f}"]
        strength, range_tried, width_told = cells
        error = f" ± {row['error']:.3f}"
        yield f"| {name} | {strength} | {begun:.3f} | {row['mean']:.3f}{error} | {range_tried} | {width_told} |"


def draw(grid: pl.DataFrame, rows: pl.DataFrame, problem: str) -> alt.LayerChart:
    """Accuracy over strength; a form without strengths is a horizontal line, with its name at the right end."""
    means = last_tasks(grid, METRIC).select("form", "strength", "mean", "method", "options")
    dialled = means["form"].unique(maintain_order=True).to_list()
    level = (
        last_tasks(rows, METRIC)
        .filter(~pl.col("form").is_in(dialled) & (pl.col("optimizer") == "adam"))
        .select("form", "method", "mean")
    )
    form = alt.Color("form:N", title=None, sort=dialled).scale(
        domain=dialled, range=[METHODS[FORMS[name].method].colour for name in dialled]
    )
    dash = alt.StrokeDash("form:N", title=None, sort=dialled).scale(
        domain=dialled, range=[[6, 3] if FORMS[name].options else [1, 0] for name in dialled]
    )
    line = (
        alt.Chart(means)
        .mark_line(point=True, strokeWidth=2)
        .encode(
            x=alt.X("strength:Q").scale(type="log").axis(format="~e", values=means["strength"].unique().to_list()),
            y=alt.Y("mean:Q", title="training accuracy, last five tasks").scale(domain=[0, 1]),
            color=form,
            strokeDash=dash,
        )
    )
    end = level.with_columns(strength=means["strength"].max() if math.isfinite(means["strength"].max()) else 1.0)
    rule = alt.Chart(level).mark_rule(color="#999999", strokeDash=[2, 2]).encode(y="mean:Q")
    text = (
        alt.Chart(end)
        .mark_text(align="right", baseline="bottom", color="#444444")
        .encode(x="strength:Q", y="mean:Q", text="form:N")
    )
    chart: alt.LayerChart = (rule + text + line).properties(
        width=620, height=380, title=alt.Title(f"{problem}: accuracy kept, over strength", anchor="start")
    )
    return charts.configured(chart)


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"train": Train, "tables": Tables})()
