"""The pull of one stretch (a matrix's σ₁, a vector's norm, a gain) to its target τ: penalty, gradient and step.

The penalty is τ²((s/τ)ᵏ − 1)²: the paper's at τ = 1, and equally strong near any τ. For τ = 0 it is s²ᵏ.
All functions take any number of stretches at once, and one target for all or one per stretch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from supple.mitigators.kernels import Strength, per_member


@dataclass(frozen=True)
class Pull:
    """The pull of stretches to their targets. Stretches are at least 0, unless :attr:`depends_on_sign`."""

    exponent: int
    """k."""
    one_sided: bool
    """Whether targets are ceilings: only stretches above them are pulled."""
    is_plain: bool = False
    """Whether every target is 0 or 1, so that no division by τ is needed."""

    @property
    def depends_on_sign(self) -> bool:
        """Whether a negative gain is pulled to the target τ itself, and not to −τ."""
        return self.exponent % 2 == 1 and not self.one_sided

    def penalty(self, stretches: Tensor, target: Strength) -> Tensor:
        """The penalty term of each stretch."""
        unit, goal = self._unit_and_goal(target)
        excess = (stretches / unit) ** self.exponent - goal
        return unit**2 * (excess.clamp_min(0) if self.one_sided else excess).square()

    def slope(self, stretches: Tensor, target: Strength, strength: Strength) -> Tensor:
        """The derivative of strength · :meth:`penalty` with respect to each stretch."""
        k, (unit, goal) = self.exponent, self._unit_and_goal(target)
        factor = 2 * k * per_member(strength, stretches.ndim)
        if isinstance(unit, Tensor) or unit != 1:  # no cost for the usual target
            factor, stretches = factor * unit, stretches / unit
        power = stretches if k == 2 else stretches ** (k - 1)
        slope = factor * power * (stretches**k - goal)
        return slope.clamp_min(0) if self.one_sided else slope

    def bounded_slope(
        self, stretches: Tensor, target: Strength, *, strength: Strength, step_size: Strength | None
    ) -> Tensor:
        """The slope, limited so that a step of this size does not pass the target; None sets no limit.

        Before a step of size 0 it is 0: momentum would keep any slope until the steps are larger.
        """
        slope = self.slope(stretches, target, strength)
        if step_size is None:
            return slope
        distance = (stretches - target).abs()
        if isinstance(step_size, Tensor):
            bound = torch.where(step_size > 0, distance / step_size, 0.0)
        else:
            bound = distance / step_size if step_size > 0 else torch.zeros_like(distance)
        return slope.clamp(-bound, bound)

    def step(self, stretches: Tensor, target: Strength, *, strength: Strength, step_size: Strength) -> Tensor:
        """How far to move each stretch: −step size · slope, but at most to the target."""
        distance = (stretches - target).abs()
        return (self.slope(stretches, target, strength) * -step_size).clamp(-distance, distance)

    def _unit_and_goal(self, target: Strength) -> tuple[Strength, Strength]:
        """The unit of the stretches and the goal in this unit: τ and 1, or 1 and 0 if τ = 0."""
        if self.is_plain:
            return 1.0, target
        if isinstance(target, Tensor):
            unit = torch.where(target > 0, target, 1.0)
            return unit, target / unit
        return target or 1.0, float(target > 0)
