"""Adam as a pure step over dictionaries, for any number of members at once."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim.adam import adam as functional_adam

Moments = dict[str, dict[str, Tensor]]


def adam_moments(parameters: Mapping[str, Tensor]) -> Moments:
    """What Adam remembers, before the first step."""
    return {
        name: {
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
            "step": torch.zeros((), device=parameter.device),
        }
        for name, parameter in parameters.items()
    }


def adam(parameters: Mapping[str, Tensor], gradients: Mapping[str, Tensor], moments: Moments, step_size: float) -> None:
    """One step of Adam (Kingma & Ba, 2015; β = 0.9 and 0.999, ε = 1e-8), in place, as ``torch.optim.Adam`` does it."""
    if torch.compiler.is_compiling():  # torch's own is one operation, which a compiler can't look into
        for name, parameter in parameters.items():
            _adam_formula(parameter, gradients[name], step_size, **moments[name])
        return
    names = list(parameters)
    functional_adam(
        [parameters[name] for name in names],
        [gradients[name].contiguous() for name in names],  # the kernel does not look at strides
        [moments[name]["exp_avg"] for name in names],
        [moments[name]["exp_avg_sq"] for name in names],
        [],
        [moments[name]["step"] for name in names],
        fused=True,
        amsgrad=False,
        beta1=0.9,
        beta2=0.999,
        lr=step_size,
        weight_decay=0.0,
        eps=1e-8,
        maximize=False,
    )


def _adam_formula(
    parameter: Tensor, gradient: Tensor, step_size: float, *, exp_avg: Tensor, exp_avg_sq: Tensor, step: Tensor
) -> None:
    step.add_(1)
    exp_avg.lerp_(gradient, 1 - 0.9)
    exp_avg_sq.mul_(0.999).addcmul_(gradient, gradient, value=1 - 0.999)
    unbiased = (exp_avg_sq / (1 - 0.999**step)).sqrt()
    parameter.sub_(step_size / (1 - 0.9**step) * exp_avg / (unbiased + 1e-8))
