"""Which form of spectral regularization an agent learns best with, and why: six settings, three tasks, three seeds.

    python benchmarks/control_forms.py train --workers 2    # four hours on two cores; resumes where it stopped
    python benchmarks/control_forms.py tables               # results so far: rows, picture, and the table in the page

The settings differ in form (the paper's, decoupled, or decoupled with a ceiling), in strength, and in whether the heads
are exempt. Every run measures its inside, above all the effective step sizes. Networks are half as wide as an agent's
usually are, which makes a run three times as fast, and the seeds of a setting are one population.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl
import tyro
from measuring import put_into, with_error, with_interval, write_environment

from supple.cli.options import Engine
from supple.rl.charts import with_steps
from supple.rl.run import Run, results
from supple.runs.charts import configured
from supple.runs.metrics import find
from supple.runs.stats import MEAN_AND_ERROR, note_on_diverged, paired, with_band

DECOUPLED: dict[str, Any] = {"method": "decoupled-spectral", "exempt_heads": True}
CEILING: dict[str, Any] = {**DECOUPLED, "options": {"target": "initial"}}
SETTINGS: dict[str, dict[str, Any]] = {
    "paper's form, 1e-4": {"method": "spectral", "strength": 1e-4},
    "decoupled, 0.01, heads exempt": {**DECOUPLED, "strength": 0.01},
    "decoupled, 1": {"method": "decoupled-spectral", "strength": 1.0, "exempt_heads": False},
    "no mitigation": {"method": "none"},
    "ceiling, 0.01, heads exempt": {**CEILING, "strength": 0.01},
    "ceiling, 1, heads exempt": {**CEILING, "strength": 1.0},
}
"""In the order of training."""
COLOURS = dict(zip(SETTINGS, ["#0072B2", "#E69F00", "#D55E00", "#000000", "#CC79A7", "#882255"], strict=True))

PICTURE = "control-forms.png"
DRAWN = ("return", "critic_effective_step_size", "actor_effective_step_size")
"""The metrics in the picture, one below the other."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is compared on which tasks."""

    tasks: tuple[str, ...] = ("cartpole-swingup", "walker-walk", "cheetah-run")
    """One easy task and two harder ones, with more joints and contacts. Their rewards are dense: settings differ within
    30,000 steps. finger-turn_easy, reacher-hard and hopper-stand give no reward for most of that time, so three seeds
    would differ by luck."""
    settings: tuple[str, ...] = tuple(SETTINGS)
    seeds: int = 3
    steps: int = 30_000
    replay_ratio: int = 4
    hidden: tuple[int, int] = (128, 128)
    random_steps: int = 1_000
    evaluate_every: int = 5_000
    episodes: int = 10

    def runs(self) -> dict[Run, str]:
        """All runs with the names of their settings, in the order of training; each has all seeds."""
        return {
            Run.of(
                task,
                seeds=range(self.seeds),
                steps=self.steps,
                evaluate_every=self.evaluate_every,
                episodes=self.episodes,
                replay_ratio=self.replay_ratio,
                hidden=self.hidden,
                random_steps=self.random_steps,
                capacity=max(self.steps, 256),  # a batch
                inside=True,
                **SETTINGS[name],
            ): name
            for name in self.settings
            for task in self.tasks
        }


@dataclass(frozen=True, kw_only=True)
class Train(Study, Engine):
    """Train what is missing."""

    out: str = "results/control-forms/runs"
    """Folder for the runs. Those in the repository are finished: any machine goes on from them."""

    def __call__(self) -> None:
        self.train_agents(list(self.runs()))


@dataclass(frozen=True, kw_only=True)
class Tables(Study):
    """Write the rows of finished runs, draw them, and put the table into the page."""

    runs_in: str = "results/control-forms/runs"
    """The folder that was trained into."""
    out: Path = Path("results/control-forms")
    """Folder for the rows."""
    page: Path = Path("docs/agents.md")
    """The page with the table; the picture lies beside it."""

    def __call__(self) -> None:
        rows = rows_so_far(self.runs(), self.runs_in, self.out)
        if rows is not None:
            draw(rows).save(self.page.with_name(PICTURE), scale_factor=2)
            picture = f"![Returns and effective step sizes of each form over the environment's steps]({PICTURE})"
            put_into(self.page, "forms", [*table(rows), "", picture])


def rows_so_far(planned: Mapping[Run, str], runs_in: str, out: Path) -> pl.DataFrame | None:
    """The rows of the finished runs with the names of their settings, also written to a folder; None if there are none.

    Args:
        planned: all runs, with their settings' names.
        runs_in: the folder that was trained into.
        out: folder for the rows and the environment.
    """
    names = {run: name for run, name in planned.items() if run.folder(runs_in).finished(run.evaluations)}
    print(f"{len(names)} of {len(planned)} runs are finished")
    if not names:
        return None
    labels = {run.folder(runs_in).name: name for run, name in names.items()}
    rows = with_steps(results(names, runs_in)).with_columns(setting=pl.col("run").replace_strict(labels))
    write_environment(out, runs_in, {*labels})
    rows.write_parquet(out / "rows.parquet")
    return rows


def table(rows: pl.DataFrame) -> Iterator[str]:
    """The lines of the page's table: a row for each task and setting."""
    yield "| task | | at the end | whole run | minus the paper's form, 95 % | σ₁ of critic's head | overestimation |"
    yield "|---" * 7 + "|"
    for task, of_task in rows.group_by("problem", maintain_order=True):
        first = next(iter(SETTINGS))
        compared = paired(of_task.drop("step"), of_task.drop("step").filter(setting=first), "return", count=None)
        differences = {row["setting"]: with_interval(row, 0) for row in compared.iter_rows(named=True)} | {first: ""}
        for setting in SETTINGS:
            values = of_task.filter(setting=setting)
            if not len(values):
                continue
            ends = values.filter(pl.col("step") == pl.col("steps"))
            cells = [
                mean_and_error(ends, "return"),
                mean_and_error(values, "return"),
                differences.get(setting, ""),
                mean_and_error(ends, "critic_spectral_norm/critics.0.1", digits=1),
                mean_and_error(ends, "overestimation", digits=2),
            ]
            yield f"| {task[0]} | {setting} | {' | '.join(cells)} |"
    diverged = note_on_diverged(rows, "return")
    yield ""
    yield (
        f"Mean ± standard error over {rows['seed'].n_unique()} seeds, {rows['steps'][0]:,} steps. *At the end* is the "
        f"return of the last evaluation, *whole run* the mean of all{f'; {diverged}' if diverged else ''}."
    )


def mean_and_error(rows: pl.DataFrame, metric: str, digits: int = 0) -> str:
    of_seeds = rows.filter(metric=metric).group_by("seed").agg(pl.col("value").mean())
    values = of_seeds.select(**MEAN_AND_ERROR).row(0, named=True)
    return with_error(values["mean"], values["error"], digits)


def draw(rows: pl.DataFrame) -> alt.VConcatChart:
    """A column for each task: returns, and below them the effective step sizes of critic and actor."""
    points = with_band(
        rows.filter(pl.col("metric").is_in(DRAWN))
        .group_by("problem", "setting", "metric", "step", maintain_order=True)
        .agg(**MEAN_AND_ERROR)
    )
    tasks = points["problem"].unique(maintain_order=True)
    present = points["setting"].unique()
    colours = {setting: colour for setting, colour in COLOURS.items() if setting in present}
    rows_of_panels = (
        [panel(points.filter(problem=task, metric=metric), metric, task, colours) for task in tasks] for metric in DRAWN
    )
    chart: alt.VConcatChart = alt.vconcat(*(alt.hconcat(*panels) for panels in rows_of_panels))
    return configured(chart)


def panel(points: pl.DataFrame, metric: str, title: str, colours: dict[str, str]) -> alt.LayerChart:
    """One metric: a line for each setting, shaded by its standard error."""
    colour = alt.Scale(domain=[*colours], range=[*colours.values()])
    scale = alt.Scale(type="log") if metric.endswith("step_size") else alt.Scale()
    base = alt.Chart(points).encode(
        x=alt.X("step:Q", title="steps of the environment"),
        color=alt.Color(
            "setting:N", title=None, scale=colour, legend=alt.Legend(orient="bottom", columns=3, symbolOpacity=1)
        ),
    )
    line = base.mark_line(point=True).encode(y=alt.Y("mean:Q", title=find(metric).title).scale(scale))
    band = base.mark_area(opacity=0.15).encode(y=alt.Y("low:Q").scale(scale), y2="high:Q")
    chart: alt.LayerChart = (band + line).properties(width=260, height=170, title=alt.Title(title, anchor="start"))
    return chart


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"train": Train, "tables": Tables})()
