"""Runs in a world that changes: when it changes, and how well each world was learned."""

from collections.abc import Sequence
from typing import NamedTuple

import polars as pl


def is_control(rows: pl.DataFrame) -> bool:
    """Whether the rows are of agents, whose tasks are evaluations after so many steps of the environment."""
    return "evaluate_every" in rows.columns and rows["evaluate_every"][0] is not None


class Changes(NamedTuple):
    """The changes of a world."""

    kind: str
    every: int
    """Environment steps between two changes."""
    evaluate_every: int
    """Environment steps between two evaluations."""
    steps: int
    """Environment steps of the whole run."""

    @classmethod
    def of(cls, rows: pl.DataFrame) -> "Changes | None":
        """The changes that these runs have in common, from their configuration; None if there are none."""
        names = ["change", "change_every", "evaluate_every", "steps"]
        if not {*names} <= {*rows.columns}:
            return None
        values = rows.select(names).unique()
        return cls(*values.row(0)) if len(values) == 1 and values["change"][0] is not None else None

    def __str__(self) -> str:
        return f"new {self.kind} every {self.every:,} steps"

    @property
    def places(self) -> tuple[int, ...]:
        """The environment steps after which the world changes."""
        return tuple(range(self.every, self.steps, self.every))

    def learned(self, rows: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
        """For each setting, the mean return over all evaluations, and over the last evaluation in each world.

        The first says how much was lost by changes, the second how well each world was learned in the end. Columns:
        ``overall`` and ``learned``, means over seeds; ``overall_error`` and ``learned_error``, their standard errors.

        Args:
            rows: the measurements.
            by: the columns that are settings.
        """
        value, step = pl.col("value"), (pl.col("task") + 1) * self.evaluate_every
        is_last = (step % self.every == 0) & (step <= self.steps)  # the run's last evaluation may come earlier
        means = ("overall", "learned")
        return (
            rows.filter(pl.col("metric") == "return")
            .group_by(*by, "seed", maintain_order=True)
            .agg(overall=value.mean(), learned=value.filter(is_last).mean())
            .group_by(*by, maintain_order=True)
            .agg(
                *(pl.col(name).mean() for name in means),
                *((pl.col(name).std() / pl.col(name).count().sqrt()).alias(f"{name}_error") for name in means),
            )
        )
