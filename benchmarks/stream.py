"""New images under labels that change: which method predicts a stream best, and is it better than starting again?

    python benchmarks/stream.py train     # hours on one core; resumes where it stopped
    python benchmarks/stream.py tables    # rows to results/stream, and the table and the charts in docs/stream.md

The stream is that of UPGD (Elsayed & Mahmood, 2024): EMNIST's 47 classes are exchanged among each other every 2,500
images. Here it has 200 such tasks, in batches of 16, with Adam. The measure is online accuracy: of each batch before it
is learned from, mean over the whole stream. Step size and strength of each form are chosen on one seed; the reported
seeds are other ones.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import altair as alt
import polars as pl
import tyro
from forms import Comparison, Form
from front_picture import save_light_and_dark
from measuring import put_into, with_error, with_interval, write_environment

from supple.cli.options import Engine
from supple.runs import charts
from supple.runs.colours import on_light
from supple.runs.lines import LABEL_HEIGHT, spaced
from supple.runs.stats import over_tasks, paired
from supple.training.methods import METHODS

TASKS = 200
METRIC = "online_accuracy"
HEIGHT = 360
AGAIN = "start again"
OWN_COLOURS = {"Adam restarted": "#777777", AGAIN: "#8C564B"}
"""Of forms that are not their method's doing."""


DECAY = (1e-2, 1e-3, 1e-4)
FORMS: dict[str, Form] = {
    "no mitigation": Form(),
    AGAIN: Form(method="shrink-and-perturb", strengths=(1.0,), options={"variant": "task"}, optimizer="adam-restarted"),
    "spectral, decoupled": Form(method="decoupled-spectral", strengths=(3.0, 1.0, 0.3, 0.1)),
    "L2 init": Form(method="l2-init", strengths=DECAY),
    "FIRE, Adam restarted": Form(method="fire", optimizer="adam-restarted"),
    "deep Fourier features": Form(method="fourier-features"),
    "UPGD": Form(method="upgd"),
    "Parseval, decoupled": Form(method="parseval", strengths=(30.0, 10.0, 3.0, 1.0), options={"decoupled": True}),
    "spectral": Form(method="spectral", strengths=DECAY),
    "spectral, ceiling": Form(
        method="decoupled-spectral", strengths=(3.0, 1.0, 0.3, 0.1), options={"target": "initial"}
    ),
    "L2": Form(method="l2", strengths=DECAY),
    "LayerNorm": Form(method="layer-norm"),
    "Adam restarted": Form(optimizer="adam-restarted"),
    "CReLU": Form(method="crelu"),
    "shrink and perturb": Form(method="shrink-and-perturb", strengths=(1e-3, 1e-4, 1e-5)),
    "continual backprop": Form(method="continual-backprop", strengths=(1e-3, 1e-4, 1e-5)),
    "ReDo": Form(method="redo", strengths=(0.3, 0.1, 0.025)),
    "Parseval": Form(method="parseval", strengths=(1.0, 0.1, 1e-2)),
    "weight clipping": Form(method="weight-clipping", strengths=(1.0, 0.5, 0.2)),
}
COMPARISON = Comparison(
    problem="label-permuted-emnist",
    forms=FORMS,
    metric=METRIC,
    last=None,
    step_sizes=(3e-3, 1e-3, 3e-4),
    protocol={
        "scale": "paper",
        "tasks": TASKS,
        "batch_size": 16,
        "diagnostics": ("weight_norm", "spectral_norm", "dead_units"),
    },
)


@dataclass(frozen=True, kw_only=True)
class Train(Engine):
    """Train what is missing, one form after the other."""

    forms: tuple[str, ...] = tuple(FORMS)
    """The forms to compare."""
    seeds: int = 3
    """Number of reported seeds, from 0."""
    out: str = "results/stream/runs"
    """Folder for the runs. Those in the repository are finished: any machine goes on from them."""

    def __call__(self) -> None:
        for form in self.forms:
            COMPARISON.measured(form, self.seeds, self.train)


@dataclass(frozen=True, kw_only=True)
class Tables:
    """Write the rows of the forms that are complete, draw them, and put the table into the page."""

    seeds: int = 3
    """Number of reported seeds, as trained."""
    runs: str = "results/stream/runs"
    """The folder that was trained into."""
    out: Path = Path("results/stream")
    """Folder for the rows."""
    page: Path = Path("docs/stream.md")
    """The page with the table; the chart lies beside it, as PNG."""

    def __call__(self) -> None:
        complete = COMPARISON.complete(self.seeds, self.runs)
        if complete is None:
            return
        tried, rows = complete
        self.out.mkdir(parents=True, exist_ok=True)
        tried.filter(metric=METRIC).write_parquet(self.out / "tuning.parquet")
        rows.write_parquet(self.out / "rows.parquet")
        write_environment(self.out, self.runs, {*tried["run"], *rows["run"]})
        save_light_and_dark(picture(rows), self.page.with_suffix(".png"), map(colour_of, rows["form"].unique()))
        put_into(self.page, "table", table(rows))


def table(rows: pl.DataFrame) -> Iterator[str]:
    """The lines of the page's table, the best form first; the last column compares with starting again, by seed."""
    yield "| | step size | strength | first 20 tasks | last 20 tasks | whole stream | minus starting again, 95 % |"
    yield "|---|---|---|---|---|---|---|"
    first, last = (
        dict(over_tasks(rows.filter(part), METRIC).select("form", "mean").iter_rows())
        for part in (pl.col("task") < 20, pl.col("task") >= TASKS - 20)
    )
    again = paired(rows, rows.filter(form=AGAIN), METRIC, count=None)
    differences = {row["form"]: with_interval(row) for row in again.iter_rows(named=True)} | {AGAIN: ""}
    for row in over_tasks(rows, METRIC).sort("mean", descending=True).iter_rows(named=True):
        form = row["form"]
        strength = f"{row['strength']:g}" if len(FORMS[form].strengths) > 1 else ""
        yield (
            f"| {form} | {row['step_size']:g} | {strength} | {first[form]:.3f} | {last[form]:.3f} "
            f"| {with_error(row['mean'], row['error'])} | {differences.get(form, '')} |"
        )


def colour_of(form: str) -> str:
    return OWN_COLOURS.get(form, METHODS[FORMS[form].method].colour)


def picture(rows: pl.DataFrame) -> alt.LayerChart:
    """Online accuracy over the stream, in means of ten tasks; the name of each form at the end of its line."""
    ten = (
        rows.filter(metric=METRIC)
        .with_columns(images=(pl.col("task") // 10 * 10 + 5) * 2_500)
        .group_by("form", "method", "images", maintain_order=True)
        .agg(accuracy=pl.mean("value"))
    )
    forms = ten["form"].unique(maintain_order=True).to_list()
    line = (
        alt.Chart(ten)
        .mark_line(strokeWidth=2)
        .encode(
            x=alt.X("images:Q", title="images seen").scale(nice=False).axis(format="~s"),
            y=alt.Y("accuracy:Q", title="accuracy on images before they are learned from"),
            color=alt.Color("form:N", legend=None).scale(domain=forms, range=[colour_of(name) for name in forms]),
            detail="form:N",
        )
    )
    ends = ten.filter(pl.col("images") == ten["images"].max()).sort("accuracy")
    top = float(ten["accuracy"].max())  # type: ignore[arg-type]  # a number
    places = spaced(ends["accuracy"].to_numpy(), top * LABEL_HEIGHT / HEIGHT, 0, top)
    ends = ends.with_columns(accuracy=pl.Series(places))
    names = (
        alt.Chart(ends.with_columns(ink=pl.Series([on_light(colour_of(form)) for form in ends["form"]])))
        .mark_text(align="left", dx=5)
        .encode(x="images:Q", y="accuracy:Q", text="form:N", color=alt.Color("ink:N", scale=None))
    )
    chart: alt.LayerChart = (line + names).properties(
        width=560,
        height=HEIGHT,
        title=alt.Title(
            "A stream of images whose labels change every 2,500 images",
            subtitle=f"online accuracy on EMNIST, 47 classes, mean of {rows['seed'].n_unique()} seeds",
            anchor="start",
        ),
    )
    return charts.configured(chart)


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"train": Train, "tables": Tables})()
