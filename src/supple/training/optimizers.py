"""The optimizers by name, as pure steps over dictionaries of stacked tensors."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim._muon import muon as functional_muon
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


def no_moments(parameters: Mapping[str, Tensor]) -> Moments:
    """What an optimizer without a memory remembers."""
    return {name: {} for name in parameters}


def sgd(parameters: Mapping[str, Tensor], gradients: Mapping[str, Tensor], moments: Moments, step_size: float) -> None:
    """One step of gradient descent without momentum, in place."""
    torch._foreach_add_(list(parameters.values()), [gradients[name] for name in parameters], alpha=-step_size)


def muon_moments(parameters: Mapping[str, Tensor]) -> Moments:
    """What Muon remembers of hidden matrices, and Adam of everything else, before the first step."""
    hidden = _hidden_matrices(parameters)
    return {
        name: {"momentum_buffer": torch.zeros_like(parameter)}
        if name in hidden
        else adam_moments({name: parameter})[name]
        for name, parameter in parameters.items()
    }


def muon(parameters: Mapping[str, Tensor], gradients: Mapping[str, Tensor], moments: Moments, step_size: float) -> None:
    """One step of Muon (Jordan et al., 2024) for hidden matrices and of Adam for everything else, in place.

    As ``torch.optim.Muon`` does it without weight decay, its steps scaled to the size of Adam's (Liu et al., 2025), so
    that one step size serves both. Tensors are stacked: ``(members, ...)``.
    """
    hidden = _hidden_matrices(parameters)
    functional_muon(
        [matrix for name in hidden for matrix in parameters[name].unbind()],
        [matrix for name in hidden for matrix in gradients[name].unbind()],
        [matrix for name in hidden for matrix in moments[name]["momentum_buffer"].unbind()],
        lr=step_size,
        weight_decay=0.0,
        momentum=0.95,
        nesterov=True,
        ns_coefficients=(3.4445, -4.775, 2.0315),
        ns_steps=5,
        eps=1e-7,
        adjust_lr_fn="match_rms_adamw",
        has_complex=False,
    )
    adam(
        {name: parameter for name, parameter in parameters.items() if name not in hidden}, gradients, moments, step_size
    )


def _hidden_matrices(parameters: Mapping[str, Tensor]) -> list[str]:
    """Every layer's weight but the last one's, where it is a matrix."""
    return [name for name, parameter in parameters.items() if parameter.ndim == 3][:-1]


class Optimizer(NamedTuple):
    """An optimizer's memory before the first step, and its step."""

    moments: Callable[[Mapping[str, Tensor]], Moments]
    step: Callable[[Mapping[str, Tensor], Mapping[str, Tensor], Moments, float], None]
    restarts: bool = False
    """Whether it forgets everything where a task begins."""


OPTIMIZERS: dict[str, Optimizer] = {
    "adam": Optimizer(adam_moments, adam),
    # A new task's first gradients are large, and Adam takes small steps for as long as it remembers their squares. Two
    # remedies: to forget them as fast as the mean (Dohare et al., 2023), or at every task's start (Asadi et al., 2023).
    "adam-equal-betas": Optimizer(adam_moments, partial(adam, beta2=BETA1)),
    "adam-restarted": Optimizer(adam_moments, adam, restarts=True),
    "sgd": Optimizer(no_moments, sgd),
    "muon": Optimizer(muon_moments, muon),
}
