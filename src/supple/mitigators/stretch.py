"""One stretch (a matrix's largest singular value, a vector's norm, a gain) and its target τ: penalty, slope, distance.

The penalty is τ²((s/τ)ᵏ − 1)²: the paper's at τ = 1, and equally strong near any τ. For τ = 0 it is s²ᵏ.
All functions take any number of stretches at once, and one target for all or one per stretch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Literal

import torch
from torch import Tensor

from supple.errors import known

Target = float | Mapping[str, float] | Literal["initial"]


def check_target(target: Target) -> None:
    """Check that a target is valid.

    Raises:
        TypeError: if it is neither a number, a mapping nor a string.
        ValueError: for a number that is negative or not finite, and for a string other than ``"initial"``.
    """
    if isinstance(target, str):
        known(target, ("initial",), "target that is a number of at least 0, a mapping, or 'initial'")
        return
    for name, number in (target if isinstance(target, Mapping) else {"": target}).items():
        of = f" for {name!r}" if name else ""
        if not isinstance(number, Real):
            raise TypeError(f"expected a target{of} that is a number, a mapping or 'initial', got {number!r}")
        if not 0 <= number < float("inf"):
            raise ValueError(f"expected a target{of} of at least 0, got {number}: the paper's is 1")


@dataclass(frozen=True)
class Pull:
    """The pull of stretches towards their targets. Stretches are at least 0, unless :attr:`tells_signs`."""

    exponent: int
    """k."""
    one_sided: bool
    """Whether targets are ceilings: only stretches above them are pulled."""

    is_plain: bool = False
    """Whether every target is 0 or 1, so that no division by τ is needed."""

    @property
    def tells_signs(self) -> bool:
        """Whether a negative gain is pulled to the target τ itself, and not to −τ."""
        return self.exponent % 2 == 1 and not self.one_sided

    def penalty(self, stretches: Tensor, target: float | Tensor) -> Tensor:
        """The penalty term of each stretch."""
        unit, goal = self._unit_and_goal(target)
        excess = (stretches / unit) ** self.exponent - goal
        return unit**2 * (excess.clamp_min(0) if self.one_sided else excess).square()

    def slope(self, stretches: Tensor, target: float | Tensor, strength: float | Tensor) -> Tensor:
        """The derivative of strength · :meth:`penalty` with respect to each stretch."""
        k, (unit, goal) = self.exponent, self._unit_and_goal(target)
        factor = 2 * k * strength
        if isinstance(unit, Tensor) or unit != 1:  # no cost for the usual target
            factor, stretches = factor * unit, stretches / unit
        power = stretches if k == 2 else stretches ** (k - 1)
        slope = factor * power * (stretches**k - goal)
        return slope.clamp_min(0) if self.one_sided else slope

    def distance(self, stretches: Tensor, target: float | Tensor) -> Tensor:
        """How far each stretch is from its target."""
        return (stretches - target).abs()

    def _unit_and_goal(self, target: float | Tensor) -> tuple[float | Tensor, float | Tensor]:
        """The unit of the stretches and the goal in this unit: τ and 1, or 1 and 0 if τ = 0."""
        if self.is_plain:
            return 1.0, target
        if isinstance(target, Tensor):
            unit = torch.where(target > 0, target, 1.0)
            return unit, target / unit
        return target or 1.0, float(target > 0)
