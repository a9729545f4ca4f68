"""Which form of spectral regularization an agent learns best with, and why: six settings, three tasks, three seeds.

    python benchmarks/control_forms.py train --workers 2    # four hours on two cores; resumes where it stopped
    python benchmarks/control_forms.py tables               # results so far: rows, picture, and the table in the page

The settings differ in form (the paper's, decoupled, or decoupled with a ceiling), in strength, and in whether the heads
are exempt. Every run measures its inside, above all the effective step sizes. Networks are half as wide as an agent's
usually are, which makes a run three times as fast, and the seeds of a setting are one population.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl
import tyro
from measuring import put_into, write_environment

from supple.cli.options import Engine
from supple.rl.charts import with_steps
from supple.rl.run import Run, results
from supple.runs.charts import configured
from supple.runs.metrics import find
from supple.runs.stats import MEAN_AND_ERROR, note_on_diverged, with_band

DECOUPLED: dict[str, Any] = {"method": "decoupled-spectral", "exempt_heads": True}
CEILING: dict[str, Any] = {**DECOUPLED, "options": {"target": "initial"}}
SETTINGS: dict[str, dict[str, Any]] = {
    "paper's form, 1e-4": {"method": "spectral", "strength": 1e-4},
    "decoupled, 0.01, heads exempt": {**DECOUPLED, "strength": 0.01},
    "decoupled, 1": {"method": "decoupled-spectral", "strength": 1.0},
    "no mitigation": {"method": "none"},
    "ceiling, 0.01, heads exempt": {**CEILING, "strength": 0.01},
    "ceiling, 1, heads exempt": {**CEILING, "strength": 1.0},
}
"""In the order of training."""
COLOURS = ["#0072B2", "#E69F00", "#D55E00", "#000000", "#CC79A7", "#882255"]
"""Of the settings, in their order."""

DRAWN = ("return", "critic_effective_step_size", "actor_effective_step_size")
"""The metrics in the picture, one below the other."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is compared on which tasks."""

    tasks: tuple[str, ...] = ("cartpole-swingup", "walker-walk", "cheetah-run")
    """One easy task and two harder ones, with more joints and contacts. Their rewards are dense: settings differ within
    30,000 steps. finger-turn_easy, reacher-hard and hopper-stand give no reward for most of that time, so three seeds
    would differ by luck."""
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
                **setting,
            ): name
            for name, setting in SETTINGS.items()
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
    out: Path = Path("results/control")
    """Folder for the rows."""
    page: Path = Path("docs/control.md")
    """The page with the table; the picture lies beside it."""

    def __call__(self) -> None:
        names = {run: name for run, name in self.runs().items() if run.folder(self.runs_in).finished(run.evaluations)}
        print(f"{len(names)} of {len(self.runs())} runs are finished")
        if not names:
            return
        labels = {run.folder(self.runs_in).name: name for run, name in names.items()}
        rows = with_steps(results(names, self.runs_in)).with_columns(setting=pl.col("run").replace_strict(labels))
        self.out.mkdir(parents=True, exist_ok=True)
        rows.write_parquet(self.out / "forms.parquet")
        write_environment(self.out / "forms", self.runs_in, {*labels})
        draw(rows).save(self.page.parent / "control-forms.png", scale_factor=2)
        put_into(self.page, "forms", table(rows))


def table(rows: pl.DataFrame) -> Iterator[str]:
    """The lines of the page's table: for each task the return at the end, and its mean over the run's evaluations."""
    tasks = rows["problem"].unique(maintain_order=True).to_list()
    yield "| | " + " | ".join(f"{task}, at the end | mean over the run" for task in tasks) + " |"
    yield "|---" * (1 + 2 * len(tasks)) + "|"
    returns = rows.filter(pl.col("metric") == "return")
    is_last = pl.col("step") == pl.col("steps")
    for setting in SETTINGS:
        cells = [setting]
        for task in tasks:
            of_setting = returns.filter((pl.col("problem") == task) & (pl.col("setting") == setting))
            for part in (of_setting.filter(is_last), of_setting):
                cells.append(mean_and_error(part.group_by("seed").agg(pl.col("value").mean())["value"]))
        yield "| " + " | ".join(cells) + " |"
    seeds = rows.group_by("problem", "setting").agg(pl.col("seed").n_unique())["seed"]
    of = f"{seeds.min()}" if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()}"
    diverged = note_on_diverged(rows, "return")
    yield ""
    yield f"Mean ± standard error over {of} seeds, {rows['steps'][0]:,} steps{f'; {diverged}' if diverged else ''}."


def mean_and_error(values: pl.Series) -> str:
    if values.is_empty():
        return "-"
    error = f" ± {values.std() / len(values) ** 0.5:.0f}" if len(values) > 1 else ""
    return f"{values.mean():.0f}{error}"


def draw(rows: pl.DataFrame) -> alt.VConcatChart:
    """A column for each task: returns, and below them the effective step sizes of critic and actor."""
    points = with_band(
        rows.filter(pl.col("metric").is_in(DRAWN))
        .group_by("problem", "setting", "metric", "step", maintain_order=True)
        .agg(**MEAN_AND_ERROR)
    )
    tasks = points["problem"].unique(maintain_order=True)
    chart: alt.VConcatChart = alt.vconcat(
        *(alt.hconcat(*(panel(points, task, metric) for task in tasks)) for metric in DRAWN)
    )
    return configured(chart)


def panel(points: pl.DataFrame, task: str, metric: str) -> alt.LayerChart:
    """One metric on one task: a line for each setting, shaded by its standard error."""
    colour = alt.Scale(domain=list(SETTINGS), range=COLOURS)
    scale = alt.Scale() if metric == "return" else alt.Scale(type="log")
    base = alt.Chart(points.filter((pl.col("problem") == task) & (pl.col("metric") == metric))).encode(
        x=alt.X("step:Q", title="steps of the environment"),
        color=alt.Color(
            "setting:N", title=None, scale=colour, legend=alt.Legend(orient="bottom", columns=3, symbolOpacity=1)
        ),
    )
    line = base.mark_line(point=True).encode(y=alt.Y("mean:Q", title=find(metric).title).scale(scale))
    band = base.mark_area(opacity=0.15).encode(y=alt.Y("low:Q").scale(scale), y2="high:Q")
    chart: alt.LayerChart = (band + line).properties(width=260, height=170, title=alt.Title(task, anchor="start"))
    return chart


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"train": Train, "tables": Tables})()
