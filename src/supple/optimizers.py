"""Adam as a pure step over dictionaries, for any number of members at once; and the optimizer inside another."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adam import adam as fused_adam

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8

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


def adam(
    parameters: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    moments: Moments,
    step_size: float,
    *,
    beta2: float = BETA2,
) -> None:
    """One step of Adam (Kingma & Ba, 2015; β = 0.9 and 0.999, ε = 1e-8), in place, as ``torch.optim.Adam`` does it."""
    if torch.compiler.is_compiling():
        # The fused kernel would break the graph; written out, the compiler fuses it with whatever stands around it.
        for name, parameter in parameters.items():
            written_out(parameter, gradients[name], **moments[name], step_size=step_size, beta2=beta2)
        return
    names = list(parameters)
    fused_adam(
        [parameters[name] for name in names],
        [gradients[name].contiguous() for name in names],  # the kernel does not look at strides
        [moments[name]["exp_avg"] for name in names],
        [moments[name]["exp_avg_sq"] for name in names],
        [],
        [moments[name]["step"] for name in names],
        fused=True,
        amsgrad=False,
        beta1=BETA1,
        beta2=beta2,
        lr=step_size,
        weight_decay=0.0,
        eps=EPSILON,
        maximize=False,
    )


def written_out(
    parameter: Tensor,
    gradient: Tensor,
    *,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    step_size: float,
    beta2: float = BETA2,
) -> None:
    """The same for one parameter, operation by operation."""
    step.add_(1)
    exp_avg.lerp_(gradient, 1 - BETA1)
    exp_avg_sq.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    root = exp_avg_sq.sqrt() / (1 - beta2**step).sqrt() + EPSILON
    parameter.sub_(exp_avg / root * (step_size / (1 - BETA1**step)))


def innermost(optimizer: Optimizer) -> Optimizer:
    """The optimizer whose ``step()`` moves the parameters, inside those that a framework puts around it."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"expected a torch.optim.Optimizer, got {type(optimizer).__name__}: attach to each optimizer")
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    return optimizer
