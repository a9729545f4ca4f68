"""Utility-based perturbed gradient descent (Elsayed & Mahmood, 2024): useful weights move little, others wander."""

from collections.abc import Mapping

import torch
from torch import nn

from supple.mitigators.base import Mitigator, State, Strength, Tensors, per_member
from supple.population import Population
from supple.power_iteration import TINY, working_dtype
from supple.roles import Kind, Role


class UPGD(Mitigator):
    r"""Gate each weight's gradient by its utility and perturb it.

    .. math:: g \gets (g + \xi)(1 - \text{gate}) + \lambda\theta

    The utility u is a moving average of −gθ (what removing the weight would cost, to first order), û that corrected for
    its start from zero, gate = sigmoid(û / max û) with the maximum over the network, and ξ ~ N(0, noise²). With SGD as
    the optimizer, θ ← (1 − αλ)θ − α(g + ξ)(1 − gate) as published; other optimizers see the changed gradient.

    Args:
        network: a module or a :class:`Population`.
        strength: from 0 (the gradient as it is) to 1 (the published method).
        noise: standard deviation of ξ; 1e-3 is the middle of the range that the source searches.
        decay: of the moving average, 0.999.
        weight_decay: λ.
        roles: None for a parameter leaves it out; the role itself makes no difference here.
        seed: of the noise.

    Raises:
        ValueError: for a strength above 1 and for options out of range.

    Source: Elsayed & Mahmood, *Addressing Loss of Plasticity and Catastrophic Forgetting in Continual Learning*, 2024.
    """

    largest_strength = 1.0
    traceable = False

    def __init__(
        self,
        network: nn.Module | Population,
        strength: Strength = 1.0,
        *,
        noise: float = 1e-3,
        decay: float = 0.999,
        weight_decay: float = 0.0,
        roles: Mapping[str, Kind | Role | None] | None = None,
        seed: int = 0,
    ) -> None:
        if not (noise >= 0 and weight_decay >= 0 and 0 <= decay < 1):
            raise ValueError(
                f"expected noise and weight_decay of at least 0 and a decay from 0 to below 1, got noise={noise}, "
                f"weight_decay={weight_decay}, decay={decay}"
            )
        super().__init__(network, strength, roles=roles)
        self.noise, self.decay, self.weight_decay = noise, decay, weight_decay
        self.state = {
            name: {
                "utility": torch.zeros_like(parameter.detach(), dtype=working_dtype(parameter)),
                "weight": torch.zeros((), device=parameter.device),  # of all values averaged so far: 1 + β + β² + …
            }
            for name, parameter in self.parameters.items()
        }
        self._seed(seed)

    def add_gradients(self, parameters: Tensors, gradients: Tensors, state: State, strength: Strength) -> None:
        utilities = {}
        for name, gradient in gradients.items():
            weight = state[name]["weight"].mul_(self.decay).add_(1)
            utility = state[name]["utility"]
            cost = -(gradient * parameters[name]).to(utility.dtype)
            utilities[name] = utility.lerp_(cost, (1 / weight).to(utility.dtype))
        peaks = [self.roles[name].vector(utility).amax(-1) for name, utility in utilities.items()]
        peak = torch.stack(peaks).amax(0)
        for name, gradient in gradients.items():
            scale = peak.view(-1, *(1,) * (gradient.ndim - 1)) if self._members else peak
            gate = torch.sigmoid(utilities[name] / torch.where(scale.abs() < TINY, 1, scale))
            noise = self._random(gradient, lambda part, random: part.normal_(std=self.noise, generator=random))
            target = (gradient + noise) * (1 - gate) + self.weight_decay * parameters[name]
            gradient.add_((target - gradient) * per_member(strength, gradient.ndim))
