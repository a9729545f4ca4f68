"""Means over seeds, with their errors."""

import polars as pl


def by_task(rows: pl.DataFrame, metric: str) -> pl.DataFrame:
    """The mean of ``metric`` over seeds for each method, strength and task, with its standard error and their number.

    The standard error is the sample deviation over √seeds; null for one seed.
    """
    return (
        rows.filter(pl.col("metric") == metric)
        .group_by("method", "strength", "task", maintain_order=True)
        .agg(**_mean_and_error())
        .sort("task", maintain_order=True)
    )


def last_tasks(rows: pl.DataFrame, metric: str, count: int = 5) -> pl.DataFrame:
    """The mean of ``metric`` over the last ``count`` tasks, then over seeds, with the spread over seeds."""
    return (
        rows.filter((pl.col("metric") == metric) & (pl.col("task") >= pl.col("tasks") - count))
        .group_by("method", "strength", "seed", maintain_order=True)
        .agg(pl.col("value").mean())
        .group_by("method", "strength", maintain_order=True)
        .agg(**_mean_and_error(), low=pl.col("value").min(), high=pl.col("value").max())
    )


def _mean_and_error() -> dict[str, pl.Expr]:
    value = pl.col("value")
    return {"mean": value.mean(), "error": value.std() / value.len().sqrt(), "seeds": value.len()}
