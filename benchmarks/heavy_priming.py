"""Heavy priming without LayerNorm: does an agent that overfits its first transitions learn worse, and what helps?

    python benchmarks/heavy_priming.py train --seeds 1    # an hour and a half on one core; resumes where it stopped
    python benchmarks/heavy_priming.py tables             # results so far: rows, picture, and the table in the page

As in Nikishin et al. (2022): 100,000 updates on the first 100 transitions of `quadruped-run`, then training as usual.
The agent is the paper's but for its LayerNorm, and half as wide, which makes a run three times as fast. It takes four
updates a step, so that 20,000 steps show a difference; Nikishin et al. take one, over a million steps.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl
import tyro
from control_forms import mean_and_error, panel, rows_so_far
from measuring import put_into

from supple.cli.options import Engine
from supple.rl.run import Run
from supple.runs.charts import configured
from supple.runs.stats import MEAN_AND_ERROR, with_band

UPDATES = 100_000
STEPS = 20_000
SETTINGS: dict[str, dict[str, Any]] = {
    "none": {"method": "none"},
    "none, not primed": {"method": "none", "prime": 0},
    "reset after 10,000 steps": {"method": "resets", "resets": {"every": STEPS // 2, "unit": "steps"}},
    "spectral, 1e-4": {"method": "spectral", "strength": 1e-4},
    "decoupled, 0.01, heads exempt": {"method": "decoupled-spectral", "strength": 0.01, "exempt_heads": True},
    "none, with LayerNorm": {"method": "none", "layer_norm": True},
}
"""In the order of training."""
COLOURS = dict(zip(SETTINGS, ["#000000", "#999999", "#009E73", "#0072B2", "#E69F00", "#CC79A7"], strict=True))
PICTURE = "heavy-priming.png"


def runs(seeds: int) -> dict[Run, str]:
    """All runs with the names of their settings, in the order of training: all settings of a seed, then the next."""
    return {
        Run.of(
            "quadruped-run",
            seeds=[seed],
            steps=STEPS,
            evaluate_every=2_000,
            episodes=3,
            replay_ratio=4,
            hidden=(128, 128),
            random_steps=1_000,
            capacity=STEPS,
            inside=True,
            **{"prime": UPDATES, "layer_norm": False} | setting,
        ): name
        for seed in range(seeds)
        for name, setting in SETTINGS.items()
    }


@dataclass(frozen=True, kw_only=True)
class Train(Engine):
    """Train what is missing."""

    seeds: int = 3
    out: str = "results/heavy-priming/runs"
    """Folder for the runs. Those in the repository are finished: any machine goes on from them."""

    def __call__(self) -> None:
        self.train_agents(list(runs(self.seeds)))


@dataclass(frozen=True, kw_only=True)
class Tables:
    """Write the rows of finished runs, draw them, and put the table into the page."""

    seeds: int = 3
    runs_in: str = "results/heavy-priming/runs"
    """The folder that was trained into."""
    out: Path = Path("results/heavy-priming")
    """Folder for the rows."""
    page: Path = Path("docs/agents.md")
    """The page with the table; the picture lies beside it."""

    def __call__(self) -> None:
        rows = rows_so_far(runs(self.seeds), self.runs_in, self.out)
        if rows is not None:
            draw(rows).save(self.page.with_name(PICTURE), scale_factor=2)
            picture = f"![Returns and effective rank of the critic's features over the environment's steps]({PICTURE})"
            put_into(self.page, "heavy priming", [*table(rows), "", picture])


def table(rows: pl.DataFrame) -> list[str]:
    """The lines of the page's table: a row for each setting."""
    lines = [
        "| | seeds | first half | second half | overestimation | critic's σ₁ | dormant units | effective rank |",
        "|---" * 8 + "|",
    ]
    for setting in SETTINGS:
        values = rows.filter(setting=setting)
        if len(values):
            early = pl.col("step") <= STEPS // 2
            cells = [
                f"{values['seed'].n_unique()}",
                *(mean_and_error(half, "return") for half in (values.filter(early), values.filter(~early))),
                mean_and_error(values, "overestimation", digits=2),
                mean_and_error(values, "critic_spectral_norm", digits=1),
                mean_and_error(values, "critic_dormant", digits=2),
                mean_and_error(values, "critic_effective_rank", digits=1),
            ]
            lines.append(f"| {setting} | {' | '.join(cells)} |")
    return [*lines, "", "Returns are the mean over the evaluations of the half, other columns over all evaluations."]


def draw(rows: pl.DataFrame) -> alt.HConcatChart:
    """Returns and the critic's effective rank side by side."""
    drawn = {"return": "quadruped-run, primed", "critic_effective_rank": ""}
    points = with_band(
        rows.filter(pl.col("metric").is_in([*drawn]))
        .group_by("setting", "metric", "step", maintain_order=True)
        .agg(**MEAN_AND_ERROR)
    )
    panels = [panel(points.filter(metric=metric), metric, title, COLOURS) for metric, title in drawn.items()]
    chart: alt.HConcatChart = configured(alt.hconcat(*panels))
    return chart


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"train": Train, "tables": Tables})()
