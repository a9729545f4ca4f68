"""Which methods recover when the world changes: ten changes of a control task, with and without LayerNorm.

    python benchmarks/changing_world.py train --workers 2    # four to five hours on two idle cores; resumes
    python benchmarks/changing_world.py tables    # results so far: rows, chart, and the table in docs/control.md

Ten minutes of one core are about 90,000 updates, or 8,000 in each of eleven worlds. The task must be learned in fewer:
`Pendulum-v1` is, in about 3,000, and its simulation costs nothing. It has one action, so each change turns everything
that the policy does into its opposite. Four updates a step leave 2,000 steps in each world, which are ten episodes.
The buffer holds half of that: a thousand steps after a change, nothing in it is of an earlier world any more, and
another thousand follow until the next change.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import altair as alt
import polars as pl
import tyro
from measuring import put_into, write_environment

from supple.cli.options import Engine
from supple.rl.charts import over_steps
from supple.rl.run import Change, Run, results
from supple.runs import charts
from supple.runs.changes import Changes
from supple.training.methods import title_of

METHODS = ("none", "resets", "l2-init", "redo", "continual-backprop", "spectral", "decoupled-spectral")
SETTING = ("method", "layer_norm")
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
    replay_ratio: int = 4
    seeds: int = 3
    methods: tuple[str, ...] = METHODS

    def runs(self, method: str, layer_norm: bool) -> list[Run]:
        """The runs of one setting; `resets` come with each change."""
        every = self.change_every
        return [
            Run.of(
                self.task,
                method,
                [seed],
                steps=(self.changes + 1) * every,
                change=self.change,
                change_every=every,
                replay_ratio=self.replay_ratio,
                random_steps=every // 4,
                capacity=every // 2,
                evaluate_every=every // 5,
                episodes=5,
                resets={"every": every, "unit": "steps"} if method == "resets" else None,
                layer_norm=layer_norm,
            )
            for seed in range(self.seeds)
        ]

    def settings(self) -> Iterator[tuple[str, bool]]:
        """Every method with and without LayerNorm."""
        return product(self.methods, (True, False))


@dataclass(frozen=True, kw_only=True)
class Train(Study, Engine):
    """Train what is missing, first one seed of every setting."""

    out: str = "results/changing-world/runs"
    """Folder for the runs. Those in the repository are finished: any machine goes on from them."""

    def __call__(self) -> None:
        by_setting = [self.runs(*setting) for setting in self.settings()]
        self.train_agents([run for of_one_seed in zip(*by_setting, strict=True) for run in of_one_seed])


@dataclass(frozen=True, kw_only=True)
class Tables(Study):
    """Write the rows of the settings that are complete, draw them, and put the table into the page."""

    runs_in: str = "results/changing-world/runs"
    """The folder that was trained into."""
    out: Path = Path("results/changing-world")
    """Folder for the rows."""
    page: Path = Path("docs/control.md")
    """The page with the table; the chart lies beside it."""

    def __call__(self) -> None:
        rows = results([run for runs in self.complete() for run in runs], self.runs_in)
        self.out.mkdir(parents=True, exist_ok=True)
        rows.write_parquet(self.out / "rows.parquet")
        write_environment(self.out, self.runs_in, {*rows["run"]})
        draw(rows, self.task).save(self.page.with_name(PICTURE), scale_factor=2)
        picture = f"![Returns over steps of {self.task}, with LayerNorm and without; rules mark the changes]({PICTURE})"
        put_into(self.page, "changing world", [*table(rows), "", picture])

    def complete(self) -> Iterator[list[Run]]:
        """The runs of each setting that is at its end."""
        for method, layer_norm in self.settings():
            runs = self.runs(method, layer_norm)
            if all(run.folder(self.runs_in).finished(run.evaluations) for run in runs):
                yield runs
            else:
                print(
                    f"{method} {'with' if layer_norm else 'without'} LayerNorm is left out: not all seeds are trained"
                )


def table(rows: pl.DataFrame) -> Iterator[str]:
    """The lines of the page's table, the best setting first."""
    changes = Changes.of(rows)
    assert changes  # the study has some
    world = pl.col("task") // changes.evaluations_per_world
    parts = {"first": rows.filter(world < ENDS), "late": rows.filter(world > world.max() - ENDS)}
    learned = changes.learned(rows, SETTING)
    for name, part in parts.items():
        columns = [pl.col(column).alias(f"{name}{column}") for column in ("learned", "learned_error")]
        learned = learned.join(changes.learned(part, SETTING).select(*SETTING, *columns), on=SETTING)
    yield f"| | LayerNorm | all evaluations | before changes | in the first {ENDS} worlds | in the last {ENDS} worlds |"
    yield "|---|---|---|---|---|---|"
    for row in learned.sort("learned", descending=True).iter_rows(named=True):
        names = ("overall", "learned", "firstlearned", "latelearned")
        cells = [_with_error(row[name], row[f"{name}_error"]) for name in names]
        yield f"| {title_of(row['method'])} | {'yes' if row['layer_norm'] else 'no'} | {' | '.join(cells)} |"


def _with_error(mean: float, error: float | None) -> str:
    text = f"{mean:.0f}" if error is None else f"{mean:.0f} ± {error:.0f}"
    return text.replace("-", "−")


def draw(rows: pl.DataFrame, task: str) -> alt.VConcatChart:
    """Returns over steps, with LayerNorm above and without it below."""
    subtitle = charts.over_seeds(rows["seed"].n_unique())
    panels = [
        over_steps(part, "return", f"{task}, {title}", subtitle, width=640)
        for title, layer_norm in (("LayerNorm", True), ("no LayerNorm", False))
        if len(part := rows.filter(pl.col("layer_norm") == layer_norm))
    ]
    with charts.shared_selections():  # both panels choose methods by the same clicks
        return charts.configured(alt.vconcat(*panels))


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"train": Train, "tables": Tables})()
