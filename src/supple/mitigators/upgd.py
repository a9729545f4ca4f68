"""Utility-based perturbed gradient descent (Elsayed & Mahmood, 2024): useful weights move little, others wander."""

from collections.abc import Mapping

import torch
from torch import nn

from supple.mitigators.base import Mitigator, State, Strength, Tensors, move_towards, per_member
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
                # The sum 1 + β + β² + … times the average: it then decays in place, with no temporary.
                "utility": torch.zeros_like(parameter.detach(), dtype=working_dtype(parameter)),
                "weight": torch.zeros((), dtype=working_dtype(parameter), device=parameter.device),  # that sum
            }
            for name, parameter in self.parameters.items()
        }
        self._seed(seed)

    def add_gradients(self, parameters: Tensors, gradients: Tensors, state: State, strength: Strength) -> None:
        weights = [state[name]["weight"] for name in gradients]
        torch._foreach_mul_(weights, self.decay)
        torch._foreach_add_(weights, 1)
        peaks = []
        for (name, gradient), weight in zip(gradients.items(), weights, strict=True):
            utility = state[name]["utility"].mul_(self.decay).addcmul_(gradient, parameters[name], value=-1)
            peaks.append(self.roles[name].vector(utility).amax(-1) / weight)
        peak = torch.stack(peaks).amax(0)
        peak = torch.where(peak.abs() < TINY, 1, peak)
        for (name, gradient), weight in zip(gradients.items(), weights, strict=True):
            relative = state[name]["utility"] * (-1 / per_member(weight * peak, gradient.ndim))
            one_less_gate = relative.sigmoid_()
            target = self._random(gradient, lambda part, random: part.normal_(std=self.noise, generator=random))
            target.add_(gradient).mul_(one_less_gate)
            if self.weight_decay:
                target.add_(parameters[name], alpha=self.weight_decay)
            move_towards(gradient, target, strength)
