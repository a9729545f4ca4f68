"""Utility-based perturbed gradient descent (Elsayed & Mahmood, 2024): perturbs weights, useful ones least."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from supple.kernels.power_iteration import TINY, working_dtype
from supple.mitigators.base import Mitigator
from supple.mitigators.kernels import Strength, Update, move_towards, times_strength
from supple.mitigators.optimizers import searches_lines
from supple.mitigators.states import State, Tensors
from supple.network.population import Population
from supple.network.roles import Overrides


class UPGD(Mitigator):
    r"""Gate each weight's update by its utility, and perturb it.

    .. math:: \theta \gets (1 - \alpha\lambda)\,\theta + (\Delta - \alpha\xi)(1 - \text{gate})

    Δ is the optimizer's change of a weight, α its step size. The utility u is a moving average of −gθ (to first order,
    how much the loss grows if the weight is removed), û is that average corrected for its start from zero, gate =
    sigmoid(û / max û) with the maximum over all parameters of the optimizer, as in the authors' code, and ξ ~ N(0,
    noise²). With plain SGD, Δ = −αg, this is the published method. With Adam it is the authors' AdaptiveUPGD, which
    gates and perturbs Adam's normalized update; except that AdaptiveUPGD doubles the step size, because gates are ½ on
    average, and has ε = 1e-5 (the code that the authors recommend doubles it for SGD too, and has λ = 1e-3).

    Args:
        network: a module or a :class:`Population`.
        strength: from 0 (the optimizer's step unchanged) to 1 (the published method).
        noise: standard deviation of ξ; 1e-3 is the default of the authors' code and its value where labels change;
            where pixels are permuted it has 0.1. It also enters an embedding's ``padding_idx`` row, which has no
            gradient: leave that embedding out with ``roles``.
        decay: the decay of the moving average, 0.999.
        weight_decay: λ; it is not gated. An optimizer's own weight decay is part of Δ.
        corrected_maximum: divide by max û, as in the paper. False divides by max u, as in the authors' code: then gates
            are nearly 0 or 1 during the first 1 / (1 − decay) steps.
        roles: None for a parameter leaves it out; the role itself makes no difference here.
        seed: of the noise.

    Each step keeps a copy of the parameters until the optimizer has updated them.

    Raises:
        ValueError: for a strength above 1 and for options out of range; when attached, if the optimizer does not give
            its step size, or evaluates the loss at several points of a step, as L-BFGS does: such a step has no single
            gradient for the utility.

    Source: Elsayed & Mahmood, *Addressing Loss of Plasticity and Catastrophic Forgetting in Continual Learning*, 2024.
    """

    largest_strength = 1.0
    traceable = False
    needs_step_sizes = True

    def __init__(
        self,
        network: nn.Module | Population,
        strength: Strength = 1.0,
        *,
        noise: float = 1e-3,
        decay: float = 0.999,
        weight_decay: float = 0.0,
        corrected_maximum: bool = True,
        roles: Overrides | None = None,
        seed: int = 0,
    ) -> None:
        if not (noise >= 0 and weight_decay >= 0 and 0 <= decay < 1):
            raise ValueError(
                f"expected noise and weight_decay of at least 0 and a decay from 0 to below 1, got noise={noise}, "
                f"weight_decay={weight_decay}, decay={decay}: leave them out for the defaults"
            )
        super().__init__(network, strength, roles=roles)
        self.noise, self.decay, self.weight_decay = noise, decay, weight_decay
        self.corrected_maximum = corrected_maximum
        self.state = {
            name: {
                # The average times the sum 1 + β + β² + …: its update needs no temporary tensor.
                "utility": torch.zeros_like(parameter.detach(), dtype=working_dtype(parameter)),
                "weight": torch.zeros((), dtype=working_dtype(parameter), device=parameter.device),  # that sum
            }
            for name, parameter in self.parameters.items()
        }
        self._before: Tensors = {}
        """During an optimizer's step: the parameters before it."""
        self._seed(seed)

    def _check(self, optimizers: Sequence[Optimizer]) -> None:
        for optimizer in optimizers:
            if searches_lines(optimizer):
                raise ValueError(
                    f"expected an optimizer that computes one gradient a step, got a {type(optimizer).__name__}, which "
                    "searches for its step size with several: choose another, such as SGD or Adam"
                )

    def add_gradients(self, parameters: Tensors, gradients: Tensors, state: State, strength: Strength) -> None:
        """Adds nothing; updates the utility, which needs the gradients and parameters before the step."""
        utilities, weights = ([state[name][key] for name in gradients] for key in ("utility", "weight"))
        present = [parameters[name] for name in gradients]
        torch._foreach_mul_(weights, self.decay)
        torch._foreach_add_(weights, 1)
        torch._foreach_mul_(utilities, self.decay)
        torch._foreach_addcmul_(utilities, list(gradients.values()), present, value=-1)
        self._before |= zip(gradients, torch._foreach_mul(present, 1), strict=True)

    def change_parameters(self, parameters: Tensors, state: State, strength: Strength, update: Update) -> None:
        if missing := parameters.keys() - self._before.keys():
            raise RuntimeError(
                f"expected before_step() ahead of the optimizer's step, got none for {min(missing)!r}: call it after "
                "backward(), or attach(optimizer)"
            )
        if not parameters:
            return
        utilities, weights = ([state[name][key] for name in parameters] for key in ("utility", "weight"))
        scale = self._largest_utility(parameters, utilities, weights)
        keep = torch._foreach_div(utilities, times_strength(weights, -scale, utilities))
        torch._foreach_sigmoid_(keep)  # 1 - gate
        new, before = list(parameters.values()), [self._before.pop(name).to(p.dtype) for name, p in parameters.items()]
        targets = [self._noise(name, parameter, update) for name, parameter in parameters.items()]
        torch._foreach_add_(targets, new)
        torch._foreach_sub_(targets, before)
        torch._foreach_mul_(targets, keep)
        if self.weight_decay:
            sizes = (update.step_sizes[name] for name in parameters)
            before = [old * (1 - size * self.weight_decay) for old, size in zip(before, sizes, strict=True)]
        torch._foreach_add_(targets, before)
        for parameter, target in zip(new, targets, strict=True):
            move_towards(parameter, target, strength)

    def _noise(self, name: str, parameter: Tensor, update: Update) -> Tensor:
        """−αξ."""
        noise = self._random(parameter, lambda part, random: part.normal_(std=self.noise, generator=random))
        return noise.mul_(-update.step_sizes[name])

    def _largest_utility(self, parameters: Tensors, utilities: list[Tensor], weights: list[Tensor]) -> Tensor:
        """max û over the parameters of this step, by member; or max u."""
        peaks = [self.roles[name].vector(utility).amax(-1) for name, utility in zip(parameters, utilities, strict=True)]
        torch._foreach_div_(peaks, weights if self.corrected_maximum else [1 / (1 - self.decay)] * len(peaks))
        peak = torch.stack(peaks).amax(0)
        return torch.where(peak.abs() < TINY, 1, peak)
