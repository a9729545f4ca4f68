"""Means over seeds, with their errors and intervals."""

import numpy as np
import polars as pl
import scipy  # imports its submodules on first use, not when a run starts

from supple.runs import metrics

MEASURED = ("run", "member", "seed", "task", "step", "metric", "value")
"""The columns of a measurement; all other columns are settings."""
RESAMPLES = 2000
IQM_SEEDS = 4
"""The fewest seeds for an interquartile mean: with fewer it drops none, and its interval is the range of the seeds."""

_VALUE = pl.col("value")
MEAN_AND_ERROR = {"mean": _VALUE.mean(), "error": _VALUE.std() / _VALUE.len().sqrt(), "seeds": _VALUE.len()}
"""For ``agg``: the mean of ``value``, its standard error (null for one value), and the number of values."""


def with_band(points: pl.DataFrame) -> pl.DataFrame:
    """The points with ``low`` and ``high``, one standard error below and above the mean."""
    error = pl.col("error").fill_null(0)
    return points.with_columns(low=pl.col("mean") - error, high=pl.col("mean") + error)


def settings(rows: pl.DataFrame) -> list[str]:
    """The columns that are settings: rows that differ in one of them are never averaged."""
    return [column for column in rows.columns if column not in MEASURED]


def varying(rows: pl.DataFrame) -> list[str]:
    """The settings in which the rows differ."""
    return [column for column in settings(rows) if rows[column].n_unique() > 1]


def settings_to_show(rows: pl.DataFrame) -> list[str]:
    """The settings that a reader must see: those in which the rows differ, and options that are not the defaults."""
    different = varying(rows)
    return [
        column for column in settings(rows) if column in different or (column == "options" and rows[column][0] != "{}")
    ]


def by_task(rows: pl.DataFrame, metric: str) -> pl.DataFrame:
    """The mean of ``metric`` over seeds for each setting and task, with its standard error and the number of seeds.

    The standard error is the sample standard deviation divided by √seeds; null for one seed. A seed that was trained
    twice, in two populations or with other diagnostics, counts once.
    """
    return (
        rows.filter(pl.col("metric") == metric)
        .group_by(*settings(rows), "task", "seed", maintain_order=True)
        .agg(_VALUE.mean())
        .group_by(*settings(rows), "task", maintain_order=True)
        .agg(**MEAN_AND_ERROR)
        .sort("task", maintain_order=True)
    )


def over_tasks(rows: pl.DataFrame, metric: str) -> pl.DataFrame:
    """The mean of ``metric`` over all tasks, then over seeds, for each setting, with its standard error."""
    means = _per_seed(rows, metric, None).group_by(*settings(rows), maintain_order=True).agg(**MEAN_AND_ERROR)
    return means.sort("strength", maintain_order=True)


def note_on_diverged(rows: pl.DataFrame, metric: str) -> str:
    """A note about diverged agents for readers of mean returns; "" if none has diverged, and for other metrics."""
    diverged = rows.filter((pl.col("metric") == "diverged") & (pl.col("value") == 1))
    if metric != "return" or diverged.is_empty():
        return ""
    diverged = diverged.unique(["run", "member"])
    count = "one agent has" if len(diverged) == 1 else f"{len(diverged)} agents have"
    return f"{count} diverged: the return is that of random actions from then on"


def last_count(tasks: int, most: int = 5) -> int:
    """The number of last tasks to average: at most ``most``, without the first task (a warm start averages only its
    second)."""
    return max(1, min(most, tasks - 1))


def last_tasks(rows: pl.DataFrame, metric: str, count: int | None = 5) -> pl.DataFrame:
    """The mean of ``metric`` over the last ``count`` tasks (None: all) for each setting, over seeds.

    In a short run the first task is left out (:func:`last_count`), as in all functions here that take a count.

    ============  ================================================================================
    ``mean``      with its standard ``error`` and the number of ``seeds``
    ``iqm``       interquartile mean: the mean of the middle half of the seeds
    ``low, high`` 95 % bootstrap interval of ``iqm``; null for fewer than four seeds, of which it is only the range
    ``diverged``  how many of the seeds have parameters that are not finite at the end
    ============  ================================================================================
    """
    chosen = settings(rows)
    return (
        _per_seed(rows, metric, count)
        .group_by(*chosen, maintain_order=True)
        .agg(
            **MEAN_AND_ERROR,
            iqm=_VALUE.map_batches(lambda values: interquartile_mean(values.to_numpy()), returns_scalar=True),
            interval=_VALUE.map_batches(
                lambda values: pl.Series([bootstrap_interval([values.to_numpy()])]), returns_scalar=True
            ),
        )
        .with_columns(
            pl.when(pl.col("seeds") >= IQM_SEEDS).then(pl.col("interval").list.get(index)).alias(name)
            for index, name in enumerate(("low", "high"))
        )
        .drop("interval")
        .join(
            _per_seed(rows, "diverged", 1).group_by(chosen).agg(diverged=_VALUE.sum()),
            on=chosen,
            how="left",
            nulls_equal=True,
            maintain_order="left",
        )
    )


def ranking(rows: pl.DataFrame, metric: str, count: int | None = 5) -> pl.DataFrame:
    """:func:`last_tasks`, the best setting first (the lowest if less is better), with the ``first`` task's mean."""
    chosen = settings(rows)
    first = by_task(rows, metric).filter(pl.col("task") == 0).select(*chosen, first="mean")
    last = last_tasks(rows, metric, count).join(first, on=chosen, how="left", nulls_equal=True, maintain_order="left")
    most_first = metrics.find(metric).higher_is_better is not False
    return last.sort(pl.col("mean").fill_nan(None), descending=most_first, nulls_last=True, maintain_order=True)


def paired(rows: pl.DataFrame, reference: pl.DataFrame, metric: str, count: int | None = 5) -> pl.DataFrame:
    """The difference between each setting and ``reference`` in the last ``count`` tasks, paired by seed.

    The same seed means the same tasks and batches, so the variation that these cause cancels in the difference.

    ==============  ====================================================================
    ``difference``  mean over the seeds that both have; ``pairs`` is their number
    ``low, high``   its 95 % interval by Student's t; null for one pair
    ``wins``        number of pairs in which the setting is higher; NaN counts as no win
    ==============  ====================================================================

    Args:
        rows: of any number of settings.
        reference: rows of one setting.
        metric: what is compared.
        count: a seed's value is the mean over this many last tasks; None for all tasks.
    """
    theirs = _per_seed(reference, metric, count).select("seed", theirs="value")
    difference, pairs = pl.col("difference"), pl.len().cast(pl.Int64)
    wins = (difference.fill_nan(None) > 0).sum()  # polars orders NaN above all numbers
    compared = (
        _per_seed(rows, metric, count)
        .join(theirs, on="seed", maintain_order="left")
        .with_columns(difference=pl.col("value") - pl.col("theirs"))
        .group_by(*settings(rows), maintain_order=True)
        .agg(difference.mean(), error=difference.std() / pairs.sqrt(), wins=wins, pairs=pairs)
    )
    half = pl.Series(scipy.stats.t.ppf(0.975, compared["pairs"].to_numpy() - 1), nan_to_null=True) * compared["error"]
    return compared.drop("error").with_columns(low=compared["difference"] - half, high=compared["difference"] + half)


def _per_seed(rows: pl.DataFrame, metric: str, count: int | None) -> pl.DataFrame:
    """For each setting and seed, the mean over the last ``count`` tasks; a short run's first task is left out."""
    tasks = pl.col("tasks")
    counted = pl.max_horizontal(1, pl.min_horizontal(count, tasks - 1))  # last_count
    wanted = True if count is None else pl.col("task") >= tasks - counted
    return (
        rows.filter(pl.col("metric") == metric, wanted)
        .group_by(*settings(rows), "seed", maintain_order=True)
        .agg(_VALUE.mean())
    )


def interquartile_mean(values: np.ndarray) -> float:
    """The mean of the middle half: a quarter of the values, rounded down, is dropped at each end."""
    return float(scipy.stats.trim_mean(values, 0.25))


def bootstrap_interval(strata: list[np.ndarray], seed: int = 0) -> list[float]:
    """The 95 % percentile interval of the interquartile mean of all values, resampled within each stratum.

    Args:
        strata: the values of each problem (Agarwal et al., 2021: resample seeds within a problem, never across).
        seed: of the resampling.
    """
    rng = np.random.default_rng(seed)
    drawn = [values[rng.integers(len(values), size=(RESAMPLES, len(values)))] for values in strata]
    low, high = np.quantile(scipy.stats.trim_mean(np.concatenate(drawn, axis=1), 0.25, axis=1), [0.025, 0.975])
    return [float(low), float(high)]
