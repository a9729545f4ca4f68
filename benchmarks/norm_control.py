"""Methods that hold the size of the weights, side by side: how much accuracy each keeps, and over which strengths.

    python benchmarks/norm_control.py train       # an hour on one idle core; resumes where it stopped
    python benchmarks/norm_control.py tables      # results so far: rows, chart, and the table in docs/norm-control.md

    python benchmarks/norm_control.py train --problem random-label-mnist --scale paper    # days

Every method is tried on one seed at strengths a factor of ten apart, then at about a third and three times the best.
It is judged by the mean training accuracy of the last five tasks. The reported seeds, at the best strength, are other
ones.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import altair as alt
import polars as pl
import tyro
from forms import Comparison, Form
from measuring import plateau, put_into, with_error, write_environment

from supple.cli.options import Engine
from supple.lab.problems import title_of
from supple.runs import charts
from supple.runs.lines import LABEL_HEIGHT, spaced
from supple.runs.stats import last_tasks, ranking
from supple.training.methods import METHODS

METRIC = "train_accuracy"
HEIGHT, GREY = 380, "#666666"
NEAR = 0.02
"""A plateau is the range of strengths with an accuracy within so much of the method's best."""


def decades(low: int, high: int) -> tuple[float, ...]:
    return tuple(10.0**power for power in range(low, high + 1))


SPECTRAL_DECAY: dict[str, Any] = {"method": "decoupled-spectral", "strengths": decades(-2, 2)}
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
"""In the order of training."""


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

    def comparison(self) -> Comparison:
        precision = "highest" if self.scale == "quick" else "medium"
        return Comparison(
            problem=self.problem,
            forms={name: FORMS[name] for name in self.forms},
            metric=METRIC,
            around=(0.3, 3),
            protocol={"scale": self.scale, "matmul_precision": precision, "diagnostics": ()},
        )


@dataclass(frozen=True, kw_only=True)
class Train(Problem, Engine):
    """Train what is missing, one form after the other."""

    forms: tuple[str, ...] = tuple(name for name, form in FORMS.items() if form.optimizer != "muon")
    """The forms to compare; those with Muon only if you name them."""
    out: str = "runs/norm-control"
    """Folder for the runs."""

    def __call__(self) -> None:
        for name in self.forms:
            self.comparison().measured(name, self.seeds, self.train)


@dataclass(frozen=True, kw_only=True)
class Tables(Problem):
    """Write the rows of the forms that are complete, draw them, and put the table into the page."""

    runs: str = "runs/norm-control"
    """The folder that was trained into."""
    out: Path = Path("results/norm-control")
    """Folder for the rows."""
    page: Path = Path("docs/norm-control.md")
    """The page with the table; the chart lies beside it, as PNG."""

    def __call__(self) -> None:
        complete = self.comparison().complete(self.seeds, self.runs)
        if complete is None:
            return
        grid, rows = complete
        self.out.mkdir(parents=True, exist_ok=True)
        grid.write_parquet(self.out / "tuning.parquet")
        rows.write_parquet(self.out / "rows.parquet")
        write_environment(self.out, self.runs, {*grid["run"], *rows["run"]})
        draw(grid, rows, self.problem).save(self.page.with_suffix(".png"), scale_factor=2)
        put_into(self.page, "table", table(grid, rows))


def table(grid: pl.DataFrame, rows: pl.DataFrame) -> Iterator[str]:
    """The lines of the page's table, the best form first."""
    yield "| | strength | first task | last five tasks | strengths tried | plateau, decades |"
    yield "|---|---|---|---|---|---|"
    tuned = last_tasks(grid, METRIC)
    for row in ranking(rows, METRIC).iter_rows(named=True):
        tried = tuned.filter(form=row["form"]).sort("strength")
        cells = ["", "", ""]
        if len(tried):
            strengths, means = tried["strength"], tried["mean"]
            low, high = strengths[0], strengths[-1]
            width = plateau(strengths, means, means.max() - NEAR)
            open_ended = "≥ " if max(means[0], means[-1]) >= means.max() - NEAR else ""
            cells = [f"{row['strength']:g}", f"{low:g} to {high:g}", f"{open_ended}{width:.1f}"]
        strength, range_tried, width_told = cells
        kept = with_error(row["mean"], row["error"])
        yield f"| {row['form']} | {strength} | {row['first']:.3f} | {kept} | {range_tried} | {width_told} |"


def draw(grid: pl.DataFrame, rows: pl.DataFrame, problem: str) -> alt.LayerChart:
    """Accuracy over strength, the best form first in the legend; one without strengths is a grey line with its name."""
    shown = ("form", "strength", "mean")
    tuned = last_tasks(grid, METRIC).select(shown)
    names = tuned.sort("mean", descending=True)["form"].unique(maintain_order=True).to_list()
    forms = [FORMS[name] for name in names]
    dashes = [[2, 3] if form.optimizer != "adam" else [8, 4] if form.options else [1, 0] for form in forms]
    legend = alt.Legend(title=None, orient="bottom", columns=3, symbolType="stroke", symbolSize=500, symbolOpacity=1)
    colours = [METHODS[form.method].colour for form in forms]
    ticks = [strength for strength in tuned["strength"].unique() if strength in decades(-9, 9)]
    line = (
        alt.Chart(tuned)
        .mark_line(strokeWidth=2)
        .encode(
            x=alt.X("strength:Q").scale(type="log", nice=False).axis(format="~e", values=ticks),
            y=alt.Y("mean:Q", title="training accuracy, last five tasks").scale(domain=[0, 1]),
            color=alt.Color("form:N", legend=legend).scale(domain=names, range=colours),
            strokeDash=alt.StrokeDash("form:N", legend=legend).scale(domain=names, range=dashes),
        )
    )
    marks = line.mark_point(filled=True, size=40, opacity=1)
    level = last_tasks(rows, METRIC).select(shown).filter(~pl.col("form").is_in(names)).sort("mean")
    places = spaced(level["mean"].to_numpy(), LABEL_HEIGHT / HEIGHT, 0, 1)
    level = level.with_columns(place=pl.Series(places), strength=tuned["strength"].max())
    rule = alt.Chart(level).mark_rule(color=GREY, strokeWidth=1.5).encode(y="mean:Q")
    name = alt.Chart(level).mark_text(align="left", dx=6, color=GREY).encode(x="strength:Q", y="place:Q", text="form:N")
    chart: alt.LayerChart = (rule + line + marks + name).properties(
        width=620, height=HEIGHT, title=alt.Title(f"{title_of(problem)}: accuracy kept, over strength", anchor="start")
    )
    return charts.configured(chart)


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"train": Train, "tables": Tables})()
