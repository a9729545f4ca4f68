"""Warns, before training, if the first steps of a method would change a network much."""

import math
import warnings
from collections.abc import Iterable
from typing import Literal, NamedTuple

from torch import Tensor

STEPS = 10
"""The number of steps to forecast: ten were enough to ruin trained networks."""

LARGE_CHANGE = 0.005
"""It warns if these steps change a matrix by at least this fraction of its norm: hundreds more steps follow."""

TOLERATED_RATIO = 1.5
"""A σ₁ below this multiple of its target is ignored, as are biases and gains within ``TOLERATED_RATIO - 1`` of their
target: networks that were trained with the method have such values."""


class RewriteWarning(UserWarning):
    """The first steps of a method would change what a network computes."""


class Change(NamedTuple):
    """How the first steps would change a parameter, or the matrix in it that changes most."""

    name: str
    size: float
    """Its largest singular value, a bias's norm, or the largest gain."""
    share: float
    """How far it would move in the first steps, divided by its Frobenius norm."""
    looks_fresh: bool
    """Whether its values look like an initialization, so that no training is lost."""
    measure: Literal["σ₁", "norm", "gain"] = "σ₁"
    """What ``size`` is."""


def warn(method: str, changes: Iterable[Change], remedy: str) -> bool:
    """Warn of the three largest changes, if any is large; return whether it warned."""
    worst = sorted((c for c in changes if c.share >= LARGE_CHANGE and not c.looks_fresh), key=lambda c: -c.share)
    if not worst:
        return False
    count = f"{len(worst)} parameter{'s' * (len(worst) > 1)}"
    shown = ", ".join(f"{c.name} ({c.measure} {c.size:.3g}, {100 * c.share:.2g} %)" for c in worst[:3])
    warnings.warn(
        f"{method} would change this network, which looks trained: its first {STEPS} steps would move {count} by at "
        f"least {100 * LARGE_CHANGE:g} % of their norm, most of all {shown}. {remedy}",
        RewriteWarning,
        stacklevel=5,  # the line that calls attach
    )
    return True


def looks_fresh(stretch: float, norm: float, rows: int, columns: int) -> bool:
    """Whether a matrix with this σ₁ and Frobenius norm may come from a usual initialization.

    There its entries are independent, or its rows orthogonal. Then σ₁ is at most about (√rows + √columns) times the
    entries' root mean square, with relative fluctuations of order rows^(−2/3). Training adds single directions with
    larger singular values. Also, initial entries are at most as large as those of He et al., √(2/n), where n is the
    fan-in or the fan-out.
    """
    size, fan = norm / math.sqrt(rows * columns), min(rows, columns)
    edge = size * (math.sqrt(rows) + math.sqrt(columns))
    return stretch <= (1.02 + 1.5 * fan ** (-2 / 3)) * edge and size <= 1.5 * math.sqrt(2 / fan)


def looks_initialized(values: Tensor, fan: int | None) -> bool:
    """Whether a bias or gains ``(n,)`` may come from a usual initialization.

    There they are one constant, or biases with entries of at most about 1/√n, where n is the fan-in of their layer.

    Args:
        values: the entries.
        fan: the smallest side of the layer's matrices; None if it has none.
    """
    if (values == values[0]).all():
        return True
    return fan is not None and values.norm().item() <= 1.5 * math.sqrt(len(values) / fan)
