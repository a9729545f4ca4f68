"""What benchmarks compare: methods of the laboratory, each in a form of its own and at its best strength."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import polars as pl

from supple.lab.grid import TUNING_SEEDS, finished, results
from supple.lab.run import Run
from supple.runs.stats import ranking


@dataclass(frozen=True, kw_only=True)
class Form:
    """A method, with options and an optimizer, and the strengths to try."""

    method: str = "none"
    strengths: tuple[float | None, ...] = (None,)
    """None is the method's default."""
    options: Mapping[str, Any] = field(default_factory=dict)
    optimizer: str = "adam"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Forms on one problem: strength and step size of each are chosen on one seed; the reported seeds are others."""

    problem: str
    forms: Mapping[str, Form]
    """In the order of training."""
    metric: str
    """The strength and step size with its highest mean are chosen; of equals the smallest."""
    last: int | None = 5
    """The mean is over this many last tasks; None for all."""
    step_sizes: tuple[float | None, ...] = (None,)
    """To try with each strength; None is the problem's."""
    around: tuple[float, ...] = ()
    """Factors of the best strength that are tried next."""
    protocol: Mapping[str, Any] = field(default_factory=dict)
    """The other arguments of :meth:`Run.of`."""

    def measured(
        self, form: str, seeds: int, rows_of: Callable[[list[Run]], pl.DataFrame]
    ) -> tuple[pl.DataFrame | None, pl.DataFrame]:
        """The rows of what is tried, if there is a choice, and of the reported seeds; ``rows_of`` trains or reads."""
        strengths, tried = self.forms[form].strengths, None
        chosen: tuple[float | None, ...] = strengths[0], self.step_sizes[0]
        if len(strengths) * len(self.step_sizes) > 1:
            grid = [self.run(form, TUNING_SEEDS, *values) for values in product(strengths, self.step_sizes)]
            tried = rows_of(grid)
            if len(strengths) > 1 and self.around:
                strength, step_size = self.best(tried)
                near = [float(f"{factor * strength:.2g}") for factor in self.around]
                tried = rows_of([*grid, *(self.run(form, TUNING_SEEDS, value, step_size) for value in near)])
            chosen = self.best(tried)
        return tried, rows_of([self.run(form, seed, *chosen) for seed in range(seeds)])

    def complete(self, seeds: int, root: str) -> tuple[pl.DataFrame, pl.DataFrame] | None:
        """The rows of what was tried and of the reported seeds, with a column ``form``; None if no form has them all.

        Names the forms that are left out.
        """
        done, parts = finished(root), []

        def read(wanted: list[Run]) -> pl.DataFrame:
            if left := set(wanted) - done.keys():
                raise FileNotFoundError(
                    f"{len(wanted) - len(left)} of {len(wanted)} runs are finished: train the others"
                )
            return results(wanted, root)

        for name in self.forms:
            try:
                tried, rows = self.measured(name, seeds, read)
            except FileNotFoundError as error:
                print(f"{self.problem}, {name} is left out: {error}")
            else:
                label = pl.lit(name).alias("form")
                parts.append(((rows.clear() if tried is None else tried).with_columns(label), rows.with_columns(label)))
        return (pl.concat(part[0] for part in parts), pl.concat(part[1] for part in parts)) if parts else None

    def run(self, form: str, seed: int, strength: float | None = None, step_size: float | None = None) -> Run:
        """One network that is trained in this form."""
        of_form = self.forms[form]
        return Run.of(
            self.problem,
            of_form.method,
            [seed],
            optimizer=of_form.optimizer,
            strength=strength,
            step_size=step_size,
            options=of_form.options,
            **self.protocol,
        )

    def best(self, tried: pl.DataFrame) -> tuple[float, float]:
        """The best strength and step size."""
        ranked = ranking(tried, self.metric, self.last)
        best = ranked.filter(pl.col("mean") == ranked["mean"][0]).select("strength", "step_size")
        return best.sort("strength", "step_size").row(0)
