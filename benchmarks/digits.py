"""Every method on digits with random labels: strengths tuned on one seed, results from other seeds.

    python benchmarks/digits.py       # hours on one core; resumes where it was stopped; tables to results/digits/
    python benchmarks/digits.py --methods l2 spectral     # these alone; the other methods' results stay

A quick-scale result: one small problem and three seeds. It shows which methods have an effect here; it is no ranking.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl
import tyro
from measuring import write_environment
from rich.console import Console

from supple.cli.options import Engine
from supple.lab.problems import title_of
from supple.lab.run import Run
from supple.runs import charts
from supple.runs.stats import last_tasks
from supple.runs.tables import results_table, title_with_scale
from supple.training.methods import METHODS

PROBLEM = "random-label-digits"
STRENGTHS = (1e-2, 1e-3, 1e-4)  # the paper's
OTHER_STRENGTHS = {  # for methods whose strength means something else, or whose best was at an end of the paper's
    "l2": (*STRENGTHS, 1e-5, 1e-6),
    "spectral-norm": (1.0, 0.1, *STRENGTHS),
    "wasserstein": (1.0, 0.1, *STRENGTHS),
    "decoupled-spectral": (3.0, 1.0, 0.3),
    # Squared gradients are small: the paper's strengths hardly act. The source's public code uses 10 for images.
    "streaming-ewc": (1e5, 1e4, 1e3, 1e2, 10.0, 1.0, *STRENGTHS),
    "parseval": (1.0, 0.1, 1e-2, 1e-3),  # times (64 / n)², 1/16 here
    "redo": (0.3, 0.1, 0.025),
    "continual-backprop": (1e-1, 1e-2, 1e-3, 1e-4, 1e-5),
    "self-normalized-resets": (0.05, 0.02, 0.01, 5e-3, 2e-3, 1e-3),
    "weight-clipping": (2.0, 1.0, 0.5, 0.2),
    "upgd": (1.0,),
    "normalize-and-project": (1.0,),
    "fire": (1.0,),
    "hare-and-tortoise": (1.0,),
    "network-reset": (1.0,),
}


@dataclass(frozen=True, kw_only=True)
class Digits(Engine):
    """Every method on digits with random labels: strengths tuned on one seed, results from other seeds."""

    methods: tuple[str, ...] = tuple(METHODS)
    """Methods to train."""
    tuning_seed: int = 100
    """The seed for choosing strengths."""
    seeds: int = 3
    """Number of reported seeds, from 0."""
    out: str = "runs/digits"
    """Folder for the runs; tuning runs go to a folder beside it, with the suffix `-tuning`."""
    tables: Path = Path("results/digits")
    """Folder for the tables and the chart."""

    def __call__(self) -> None:
        tuning = [
            run_of(method, self.tuning_seed, strength, diagnostics=())
            for method in self.methods
            if METHODS[method].strength
            for strength in OTHER_STRENGTHS.get(method, STRENGTHS)
        ]
        tried = replace(self, out=f"{self.out}-tuning").train(tuning)
        tuned = last_tasks(tried, "train_accuracy")
        best = chosen(tuned)
        rows = self.train(
            [run_of(method, seed, best.get(method)) for seed in range(self.seeds) for method in self.methods]
        )
        for shown in (tried, rows):
            Console().print(results_table(shown, "train_accuracy"))
        with_others(tuned, self.tables / "tuning.parquet")
        rows = with_others(rows, self.tables / "rows.parquet")
        write_environment(self.tables, self.out, set(rows["run"]))
        chart(rows).save(self.tables / "chart.png", scale_factor=2)


def with_others(rows: pl.DataFrame, path: Path) -> pl.DataFrame:
    """Write the rows, in the place of those of the same methods, and return the whole table."""
    if path.exists():
        others = pl.read_parquet(path).filter(~pl.col("method").is_in(rows["method"].unique().to_list()))
        rows = pl.concat([others, rows], how="diagonal_relaxed")
    rows.write_parquet(path)
    return rows


def chart(rows: pl.DataFrame) -> alt.LayerChart:
    """Training accuracy over tasks."""
    title = title_with_scale(rows, title_of(PROBLEM))
    subtitle = charts.over_seeds(rows["seed"].n_unique())
    return charts.configured(charts.curves_of(rows, "train_accuracy", title, subtitle))


def run_of(method: str, seed: int, strength: float | None, **changes: Any) -> Run:
    """The run of one network."""
    return Run.of(PROBLEM, method, [seed], strength=strength, **changes)


def chosen(tuned: pl.DataFrame) -> dict[str, float]:
    """The best strength of each method."""
    return dict(tuned.sort("mean").select("method", "strength").iter_rows())  # of each method, the last is kept


if __name__ == "__main__":
    tyro.cli(Digits)()
