"""Rank correlations, errors of predictors, and intervals of both: for the study of early warnings."""

from collections.abc import Callable

import numpy as np
from scipy.stats import rankdata

RESAMPLES = 1000
QUANTILES = np.linspace(0, 1, 6)
PRODUCTS = [(i, j) for i in range(4) for j in range(i, 4)]

Statistic = Callable[[np.ndarray], np.ndarray]
"""From sums, one row for each draw, to one value for each."""


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks along each row, minus their mean."""
    ranked = rankdata(values, axis=1)
    return ranked - ranked.mean(axis=1, keepdims=True)


def moments(values: np.ndarray, lengths: list[int]) -> np.ndarray:
    """By run, the sums from which correlations follow: of 1, x, y and z, and of their products; ``(runs, 10)``."""
    extended = np.concatenate([np.ones_like(values[:1]), values])
    products = np.stack([extended[i] * extended[j] for i, j in PRODUCTS])
    return np.add.reduceat(products, np.cumsum([0, *lengths[:-1]]), axis=1).T


def plain(sums: np.ndarray) -> np.ndarray:
    return correlation_table(sums)[0]


def partial(sums: np.ndarray) -> np.ndarray:
    """The correlation of x with y given z, NaN where z determines one of them."""
    xy, xz, yz = correlation_table(sums)
    scale = (1 - xz**2) * (1 - yz**2)
    return np.where(scale > 1e-6, (xy - xz * yz) / np.sqrt(np.maximum(scale, 1e-6)), np.nan)


def correlation_table(sums: np.ndarray) -> list[np.ndarray]:
    """The correlations xy, xz and yz of each row of sums; NaN where one of them is constant."""
    mean = {pair: sums[:, i] / sums[:, 0] for i, pair in enumerate(PRODUCTS)}
    covariance = {(i, j): mean[i, j] - mean[0, i] * mean[0, j] for i, j in PRODUCTS if i > 0}
    table = []
    for i, j in ((1, 2), (1, 3), (2, 3)):
        variances = covariance[i, i] * covariance[j, j]
        table.append(np.where(variances > 1e-9, covariance[i, j] / np.sqrt(np.maximum(variances, 1e-9)), np.nan))
    return table


def ratio(sums: np.ndarray) -> np.ndarray:
    return sums[:, 0] / sums[:, 1]


def skill(sums: np.ndarray) -> np.ndarray:
    return 1 - ratio(sums)


def interval(sums: np.ndarray, methods: list[str], statistic: Statistic) -> dict[str, float]:
    """A statistic of sums over runs, with 95 % intervals by drawing whole methods, and by drawing runs.

    Ranks are those among all runs, also where some are drawn.
    """
    names = sorted(set(methods))
    member = np.array([[method == name for method in methods] for name in names], dtype=float)
    limits = {}
    for prefix, units in (("", member @ sums), ("run_", sums)):
        drawn = np.random.default_rng(0).multinomial(len(units), [1 / len(units)] * len(units), size=RESAMPLES)
        values = statistic(drawn @ units)
        values = values[np.isfinite(values)]
        low, high = np.quantile(values, [0.025, 0.975]).tolist() if len(values) else (np.nan, np.nan)
        limits |= {f"{prefix}low": low, f"{prefix}high": high}
    return {"value": float(statistic(sums.sum(axis=0, keepdims=True))[0]), **limits}


def errors(fitted: np.ndarray, tested: np.ndarray) -> list[np.ndarray]:
    """The absolute errors of predictors with and without the candidate, fitted by least squares.

    A predictor is a sum of a function of what is known now and a function of the candidate. Both are linear between
    quantiles of the fitted pairs, and constant outside their range. Columns are the candidate, what is known now, and
    the target.
    """

    def features(pairs: np.ndarray, column: int) -> np.ndarray:
        knots = np.unique(np.quantile(fitted[:, column], QUANTILES))
        return np.stack([np.interp(pairs[:, column], knots, hat) for hat in np.eye(len(knots))], axis=1)

    absolute = []
    for columns in ((1, 0), (1,)):
        known, new = (np.hstack([features(pairs, column) for column in columns]) for pairs in (fitted, tested))
        weights, *_ = np.linalg.lstsq(known, fitted[:, 2], rcond=1e-6)
        absolute.append(np.abs(new @ weights - tested[:, 2]))
    return absolute


CORRELATIONS: dict[str, Statistic] = {"plain": plain, "partial": partial}
