"""Spectral regularization differs from spectral norm regularization in two ways that the paper calls crucial (§4).

    python benchmarks/differences.py     # an hour on one core; resumes where it stopped; rows to results/differences

Spectral norm regularization (Yoshida & Miyato, 2017) pulls σ₁ of the weights towards zero. The paper pulls it towards
one, and regularizes biases (and gains, which this network does not have) as well. Here each difference is undone alone,
on random labels of digits. Every form has the best strength on another seed. A quick-scale result.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro
from forms import Comparison, Form
from measuring import write_environment
from rich.console import Console

from supple.cli.options import Engine
from supple.runs.stats import paired, ranking

METRIC = "train_accuracy"
STRENGTHS = (0.1, 1e-2, 1e-3, 1e-4)
FORMS = {
    "spectral": Form(method="spectral", strengths=STRENGTHS),
    "without biases": Form(
        method="spectral",
        strengths=STRENGTHS,
        options={"roles": {f"{layer}.bias": None for layer in (1, 3, 5, 7, 9)}},
    ),
    "towards zero": Form(method="spectral", strengths=STRENGTHS, options={"target": 0.0}),
}
COMPARISON = Comparison(
    problem="random-label-digits", forms=FORMS, metric=METRIC, around=(0.3, 3), protocol={"diagnostics": ()}
)


@dataclass(frozen=True, kw_only=True)
class Differences(Engine):
    """Train what is missing, write the rows, and print each form's accuracy and its difference from spectral."""

    seeds: int = 3
    """Number of reported seeds, from 0."""
    out: str = "runs/differences"
    """Folder for the runs."""
    tables: Path = Path("results/differences")
    """Folder for the rows."""

    def __call__(self) -> None:
        for form in FORMS:
            COMPARISON.measured(form, self.seeds, self.train)
        complete = COMPARISON.complete(self.seeds, self.out)
        assert complete
        grid, rows = complete
        self.tables.mkdir(parents=True, exist_ok=True)
        grid.write_parquet(self.tables / "tuning.parquet")
        rows.write_parquet(self.tables / "rows.parquet")
        write_environment(self.tables, self.out, {*grid["run"], *rows["run"]})
        compared = paired(rows, rows.filter(form="spectral"), METRIC)
        for table in (ranking(rows, METRIC), compared):
            Console().print(table.drop("problem", "options", strict=False))


if __name__ == "__main__":
    tyro.cli(Differences)()
