"""What the first steps of a method would do to a network, said before they do it."""

import math
import warnings
from collections.abc import Iterable
from typing import NamedTuple

STEPS = 10
"""So many steps are looked ahead: they were enough to ruin trained networks."""

MUCH = 0.005
"""The share of a matrix's norm from which a change in these steps is much: hundreds of steps follow."""

NEAR = 1.5
"""A σ₁ of up to so many times its target is not counted: there a network is that was trained with the method."""


class RewriteWarning(UserWarning):
    """The first steps of a method would change what a network computes."""


class Change(NamedTuple):
    """What the first steps would do to one matrix, or to the one of several in a parameter that changes most."""

    name: str
    stretch: float
    """Its largest singular value."""
    share: float
    """How far it would move in the first steps, over its Frobenius norm."""
    looks_fresh: bool
    """Whether it may be as initialisation left it: then there is nothing to lose."""


def warn(method: str, changes: Iterable[Change], remedy: str) -> bool:
    """Warn of the three worst changes, where any is much; whether it did."""
    worst = sorted((c for c in changes if c.share >= MUCH and not c.looks_fresh), key=lambda c: -c.share)
    if not worst:
        return False
    shown = ", ".join(f"{c.name} (σ₁ {c.stretch:.3g}, {100 * c.share:.2g} %)" for c in worst[:3])
    warnings.warn(
        f"{method} would rewrite this network, which looks trained: its first {STEPS} steps would move {len(worst)} of "
        f"the matrices by {100 * MUCH:g} % of their norm or more, most of all {shown}. {remedy}",
        RewriteWarning,
        stacklevel=5,  # the line that attaches
    )
    return True


def looks_fresh(stretch: float, norm: float, rows: int, columns: int) -> bool:
    """Whether a matrix of this σ₁ and Frobenius norm may be one that usual initialisations draw.

    Its entries are independent there, or its rows orthogonal: then σ₁ is at most about (√rows + √columns) times their
    root mean square, with fluctuations that shrink as the number of rows does to the power of −2/3. Training adds
    single directions that stand out. And the entries are not larger than He et al. have them, √(2/n), n being the
    fan-in or the fan-out.
    """
    size, fan = norm / math.sqrt(rows * columns), min(rows, columns)
    edge = size * (math.sqrt(rows) + math.sqrt(columns))
    return stretch <= (1.02 + 1.5 * fan ** (-2 / 3)) * edge and size <= 1.5 * math.sqrt(2 / fan)
