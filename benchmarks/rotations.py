"""Does spectral regularization favour rotations? The singular values of the networks from `benchmarks/digits.py`.

    python benchmarks/digits.py --methods none spectral parseval   # if these runs are missing
    python benchmarks/rotations.py                        # seconds; table and chart to results/rotations/

Parseval regularization favours rotations: it pulls all singular values of a hidden weight towards one value. Spectral
regularization pulls only the largest towards one; the data determine the others.
"""

from dataclasses import dataclass
from itertools import product
from pathlib import Path

import altair as alt
import polars as pl
import torch
import tyro
from digits import PROBLEM, chosen, run_of
from measuring import write_environment
from torch import Tensor

from supple.lab import datasets, models
from supple.lab.problems import title_of
from supple.runs import charts, colours
from supple.training.methods import METHODS as TABLE

METHODS = ("none", "spectral", "parseval")
START = "initialization"


@dataclass(frozen=True, kw_only=True)
class Rotations:
    """Singular values of each hidden layer before the first task and after the last."""

    runs: str = "runs/digits"
    """The folder of runs from `benchmarks/digits.py`."""
    tuning: Path = Path("results/digits/tuning.parquet")
    """Its tuning results, which determine each method's strength."""
    seeds: int = 3
    """Number of seeds, from 0."""
    out: Path = Path("results/rotations")
    """Folder for the table and the chart."""

    def __call__(self) -> None:
        rows = measured(self)
        write_environment(self.out)
        rows.write_parquet(self.out / "rows.parquet")
        charts.save(chart(rows), self.out)
        with pl.Config(tbl_rows=-1, tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True, float_precision=3):
            print(summary(rows))


def measured(config: Rotations) -> pl.DataFrame:
    """The singular values of every seed's networks, the initial ones first."""
    strengths = chosen(pl.read_parquet(config.tuning))
    frames = []
    for seed, method in product(range(config.seeds), METHODS):
        run = run_of(method, seed, strengths.get(method))
        if method == METHODS[0]:
            torch.manual_seed(seed)
            network = models.find(run.model)(datasets.load(run.dataset))
            frames.append(spectra({name: p.detach() for name, p in network.named_parameters()}, START, seed))
        trained = run.folder(config.runs).checkpoint()
        if trained is None:
            raise FileNotFoundError(f"expected {method} of seed {seed} in {config.runs}: run digits.py first")
        parameters = {name: stacked[0] for name, stacked in trained.state["parameters"].items()}
        frames.append(spectra(parameters, method, seed))
    return pl.concat(frames)


def spectra(parameters: dict[str, Tensor], method: str, seed: int) -> pl.DataFrame:
    """One row per singular value of the weights of an MLP's hidden layers; in every layer, the largest comes first."""
    weights = [parameter for parameter in parameters.values() if parameter.ndim == 2]
    rows = [
        (method, seed, layer, index, value)
        for layer, weight in enumerate(weights[:-1], 1)
        for index, value in enumerate(torch.linalg.svdvals(weight.double()).tolist(), 1)
    ]
    return pl.DataFrame(rows, schema=["method", "seed", "layer", "index", "value"], orient="row")


def chart(rows: pl.DataFrame) -> alt.FacetChart:
    means = rows.group_by("method", "layer", "index", maintain_order=True).agg(pl.col("value").mean())
    means = means.with_columns(pl.format("hidden layer {}", "layer").alias("layer"))
    titles = {name: method.title for name, method in TABLE.items()}
    order = [START, *(titles[method] for method in METHODS)]
    means = means.with_columns(pl.col("method").replace(titles))
    colour = alt.Color("method:N", sort=order, title=None).scale(
        domain=order, range=["#BBBBBB", *(colours.COLOURS[method] for method in METHODS)]
    )
    line = (
        alt.Chart(means)
        .mark_line(strokeWidth=2)
        .encode(
            x=alt.X("index:Q", title="rank, the largest first"),
            y=alt.Y("value:Q", title="singular value").scale(type="log", domain=[0.003, 30], nice=False, clamp=True),
            color=colour,
            tooltip=["method:N", "layer:N", "index:Q", alt.Tooltip("value:Q", format=".3f")],
        )
    )
    one = alt.Chart(means).mark_rule(strokeDash=[4, 4], color="#666666").encode(y=alt.datum(1.0))
    faceted: alt.FacetChart = (
        (one + line)
        .properties(width=180, height=240)
        .facet(alt.Column("layer:N", title=None))
        .resolve_scale(x="independent")
        .properties(title=alt.Title(f"{title_of(PROBLEM)}: singular values after the last task", anchor="start"))
    )
    return charts.configured(faceted)


def summary(rows: pl.DataFrame) -> pl.DataFrame:
    """By method and layer: the largest, the median and the smallest singular value, and the share that is near it."""
    value = pl.col("value")
    of_one = rows.group_by("method", "layer", "seed", maintain_order=True).agg(
        largest=value.max(),
        middle=value.median(),
        smallest=value.min(),
        near_middle=(value / value.median()).is_between(0.9, 1.1).mean(),
    )
    columns = ("largest", "middle", "smallest", "near_middle")
    return of_one.group_by("method", "layer", maintain_order=True).agg(pl.col(columns).mean())


if __name__ == "__main__":
    tyro.cli(Rotations)()
