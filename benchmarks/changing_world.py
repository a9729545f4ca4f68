"""Which methods recover when the world changes: ten changes of a control task, with and without LayerNorm.

    python benchmarks/changing_world.py train --workers 2    # three hours on two cores; resumes where it stopped
    python benchmarks/changing_world.py tables    # results so far: rows, chart, and the table in docs/agents.md

The task must be learned within each world: `Pendulum-v1` is, in a few thousand updates of networks with two layers of
64 (it has three observations), and its simulation costs nothing. It has one action, so each change turns everything
that the policy does into its opposite. Four updates a step leave 2,000 steps in each world, which are ten episodes.
The buffer holds half of that: a thousand steps after a change, nothing in it is of an earlier world any more, and
another thousand follow until the next change.

The strength of each method is chosen by the mean return in the first five worlds, on a seed that is not reported.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import altair as alt
import polars as pl
import tyro
from measuring import put_into, with_error, with_interval, write_environment

from supple.cli.options import Engine
from supple.lab.grid import TUNING_SEEDS
from supple.rl.run import Change, Run, results
from supple.runs import charts
from supple.runs.changes import Changes
from supple.runs.lines import lines_over_tasks
from supple.runs.stats import paired


class Form(NamedTuple):
    """A method as it is compared."""

    method: str
    strengths: tuple[float, ...] = ()
    """To choose from."""
    exempt_heads: bool = False


FORMS = {
    "no mitigation": Form("none"),
    "resets": Form("resets"),
    "spectral": Form("spectral", (1e-3, 1e-4, 1e-5)),
    "L2 init": Form("l2-init", (1e-2, 1e-3, 1e-4)),
    "decoupled, heads exempt": Form("decoupled-spectral", (1.0, 0.1, 0.01), exempt_heads=True),
    "ReDo": Form("redo", (0.3, 0.1, 0.025)),
    "continual backprop": Form("continual-backprop", (1e-3, 1e-4, 1e-5)),
    "decoupled": Form("decoupled-spectral", (1.0, 0.1, 0.01)),
}
"""In the order of training."""
SETTING = ("form", "layer_norm")
PICTURE = "changing-world.png"
ENDS = 3
"""The worlds at the beginning and at the end that the table compares."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is compared."""

    task: str = "Pendulum-v1"
    change: Change = "actions"
    change_every: int = 2_000
    changes: int = 10
    tuning_changes: int = 4
    replay_ratio: int = 4
    hidden: tuple[int, int] = (64, 64)
    seeds: int = 3
    forms: tuple[str, ...] = tuple(FORMS)

    def settings(self) -> Iterator[tuple[str, bool]]:
        """Every form with and without LayerNorm."""
        return product(self.forms, (True, False))

    def tried(self, form: str, layer_norm: bool) -> list[Run]:
        """The runs from which a form's strength is chosen."""
        changes, strengths = self.tuning_changes, FORMS[form].strengths
        return [self.run_of(form, layer_norm, [TUNING_SEEDS], changes, strength) for strength in strengths]

    def reported(self, form: str, layer_norm: bool, strength: float | None) -> Run:
        """The run of all reported seeds."""
        return self.run_of(form, layer_norm, range(self.seeds), self.changes, strength)

    def run_of(self, form: str, layer_norm: bool, seeds: Iterable[int], changes: int, strength: float | None) -> Run:
        """One run; `resets` come with each change."""
        every, method = self.change_every, FORMS[form].method
        return Run.of(
            self.task,
            method,
            seeds,
            exempt_heads=FORMS[form].exempt_heads,
            steps=(changes + 1) * every,
            strength=strength,
            change=self.change,
            change_every=every,
            replay_ratio=self.replay_ratio,
            random_steps=every // 4,
            capacity=every // 2,
            evaluate_every=every // 5,
            episodes=5,
            resets={"every": every, "unit": "steps"} if method == "resets" else None,
            layer_norm=layer_norm,
            hidden=self.hidden,
        )


def best(tried: pl.DataFrame) -> float:
    """The strength with the highest mean return over all evaluations; of equals the largest."""
    returns = tried.filter(metric="return").group_by("strength").agg(pl.col("value").mean())
    strength: float = returns.sort("value", "strength")["strength"][-1]
    return strength


@dataclass(frozen=True, kw_only=True)
class Train(Study, Engine):
    """Train what is missing, one setting after the other; the seeds of a setting are one population."""

    out: str = "results/changing-world/runs"
    """Folder for the runs. Those in the repository are finished: any machine goes on from them."""

    def __call__(self) -> None:
        for setting in self.settings():
            tried = self.tried(*setting)
            self.train_agents([self.reported(*setting, best(self.train_agents(tried)) if tried else None)])


@dataclass(frozen=True, kw_only=True)
class Tables(Study):
    """Write the rows of the settings that are complete, draw them, and put the table into the page."""

    runs_in: str = "results/changing-world/runs"
    """The folder that was trained into."""
    out: Path = Path("results/changing-world")
    """Folder for the rows."""
    page: Path = Path("docs/agents.md")
    """The page with the table; the chart lies beside it."""

    def __call__(self) -> None:
        if not (complete := list(self.complete())):
            return
        forms = {run.folder(self.runs_in).name: form for form, run, _ in complete}
        rows = results([run for _, run, _ in complete], self.runs_in)
        rows = rows.with_columns(form=pl.col("run").replace_strict(forms))
        tried = [run for *_, tuning in complete for run in tuning]
        self.out.mkdir(parents=True, exist_ok=True)
        rows.write_parquet(self.out / "rows.parquet")
        if tried:
            results(tried, self.runs_in).write_parquet(self.out / "tuning.parquet")
        write_environment(self.out, self.runs_in, {run.folder(self.runs_in).name for run in tried} | {*rows["run"]})
        draw(rows, self.task).save(self.page.with_name(PICTURE), scale_factor=2)
        picture = f"![Returns of {self.task} over the steps after a change, with LayerNorm and without]({PICTURE})"
        put_into(self.page, "changing world", [*table(rows), "", picture])

    def complete(self) -> Iterator[tuple[str, Run, list[Run]]]:
        """The form and the run of each setting that is at its end, and those from which its strength was chosen."""
        for form, layer_norm in self.settings():
            tried = self.tried(form, layer_norm)
            if all(map(self.finished, tried)):
                strength = best(results(tried, self.runs_in)) if tried else None
                if self.finished(run := self.reported(form, layer_norm, strength)):
                    yield form, run, tried
                    continue
            print(f"{form} {'with' if layer_norm else 'without'} LayerNorm is left out: not all of it is trained")

    def finished(self, run: Run) -> bool:
        return run.folder(self.runs_in).finished(run.evaluations)


def table(rows: pl.DataFrame) -> Iterator[str]:
    """The lines of the page's table, the best setting first."""
    changes = Changes.of(rows)
    assert changes  # the study has some
    world = pl.col("task") // (changes.every // changes.evaluate_every)
    parts = {"first": rows.filter(world < ENDS), "late": rows.filter(world > world.max() - ENDS)}
    learned = changes.learned(rows, SETTING)
    for name, part in parts.items():
        columns = [pl.col(column).alias(f"{name}{column}") for column in ("learned", "learned_error")]
        learned = learned.join(changes.learned(part, SETTING).select(*SETTING, *columns), on=SETTING)
    learned = learned.join(rows.group_by(SETTING).agg(pl.col("strength").first()), on=SETTING)
    above = {setting: text for layer_norm in (True, False) for setting, text in differences(rows, layer_norm)}
    ends = f"in the first {ENDS} worlds | in the last {ENDS} worlds"
    yield f"| | strength | LayerNorm | all evaluations | minus no mitigation, 95 % | before changes | {ends} |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in learned.sort("overall", descending=True).iter_rows(named=True):
        names = ("overall", "learned", "firstlearned", "latelearned")
        cells = [with_error(row[name], row[f"{name}_error"], 0) for name in names]
        cells.insert(1, above.get((row["form"], row["layer_norm"]), ""))
        strength = f"{row['strength']:g}" if FORMS[row["form"]].strengths else ""
        yield f"| {row['form']} | {strength} | {'yes' if row['layer_norm'] else 'no'} | {' | '.join(cells)} |"


def differences(rows: pl.DataFrame, layer_norm: bool) -> Iterator[tuple[tuple[str, bool], str]]:
    """For each form, its mean return over all evaluations minus that without a method, paired by seed."""
    of_kind = rows.filter(pl.col("layer_norm") == layer_norm)
    reference = of_kind.filter(form="no mitigation")
    for row in paired(of_kind, reference, "return", count=None).iter_rows(named=True):
        if row["form"] != "no mitigation":
            yield (row["form"], layer_norm), with_interval(row, 0)


def draw(rows: pl.DataFrame, task: str) -> alt.VConcatChart:
    """Returns over the steps after a change, means over all changes: with LayerNorm, and below it without.

    The decoupled form leaves out the heads, but where its name says that it is on all layers.
    """
    changes = Changes.of(rows)
    assert changes  # the study has some
    every = changes.every // changes.evaluate_every
    all_layers = pl.when(form="decoupled").then(pl.lit("decoupled, all layers"))
    after = (
        rows.filter(pl.col("metric") == "return", pl.col("task") >= every)
        .with_columns(pl.col("task") % every)
        .group_by(pl.exclude("value"), maintain_order=True)
        .agg(pl.col("value").mean())
        .with_columns(method=all_layers.otherwise("method"))
        .drop("form", "options")
    )
    panels = [
        panel(after.filter(pl.col("layer_norm") == layer_norm), f"{task}, {title}", changes)
        for title, layer_norm in (("LayerNorm", True), ("no LayerNorm", False))
        if layer_norm in after["layer_norm"]
    ]
    with charts.shared_selections():  # both panels choose methods by the same clicks
        return charts.configured(alt.vconcat(*panels).resolve_scale(y="shared"))


def panel(after: pl.DataFrame, title: str, changes: Changes) -> alt.LayerChart:
    lines, name = lines_over_tasks(after, "return"), "steps after a change"
    points = lines.points.with_columns((pl.col("task") * changes.evaluate_every).alias(name)).drop("task")
    subtitle = f"{charts.over_seeds(after['seed'].n_unique())}, each the mean over {len(changes.places)} changes"
    return replace(lines, at=name, points=points).sized(title, subtitle, width=640, height=240)


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"train": Train, "tables": Tables})()
