"""The optimizers by name: pure steps over dictionaries of stacked tensors, and the same for one network."""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.adam import adam as fused_adam

try:
    from torch.optim._muon import muon as functional_muon
except ModuleNotFoundError:  # PyTorch 2.8, or one that keeps it elsewhere
    functional_muon = None  # type: ignore[assignment]  # then only "muon" is refused

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8

Moments = dict[str, dict[str, Tensor]]


def adam_moments(parameters: Mapping[str, Tensor]) -> Moments:
    """Adam's state before the first step."""
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
    beta1: float = BETA1,
    beta2: float = BETA2,
    weight_decay: float = 0.0,
) -> None:
    """One step of Adam (Kingma & Ba, 2015; β = 0.9 and 0.999, ε = 1e-8), in place, as ``torch.optim.Adam`` does it.

    Weight decay is decoupled, as in ``torch.optim.AdamW``.
    """
    if weight_decay:
        torch._foreach_mul_(list(parameters.values()), 1 - step_size * weight_decay)
    if torch.compiler.is_compiling():
        # The fused kernel would break the graph. The compiler fuses the written-out form with the code around it.
        unfused_adam(parameters, gradients, moments, step_size, beta1=beta1, beta2=beta2)
        return
    names = list(parameters)
    fused_adam(
        [parameters[name] for name in names],
        [gradients[name].contiguous() for name in names],  # the kernel ignores strides
        [moments[name]["exp_avg"] for name in names],
        [moments[name]["exp_avg_sq"] for name in names],
        [],
        [moments[name]["step"] for name in names],
        fused=True,
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=step_size,
        weight_decay=0.0,
        eps=EPSILON,
        maximize=False,
    )


def unfused_adam(
    parameters: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    moments: Moments,
    step_size: float,
    *,
    beta1: float = BETA1,
    beta2: float = BETA2,
) -> None:
    """One step of Adam, operation by operation, which ``torch.compile`` can trace."""
    for name in parameters:
        moments[name]["step"].add_(1)
    steps = torch.stack([moments[name]["step"] for name in parameters]).double()
    step_sizes = (step_size / bias_corrections(beta1, steps)).float()
    scales = bias_corrections(beta2, steps).rsqrt().float()
    for index, (name, parameter) in enumerate(parameters.items()):
        gradient, mean, square = gradients[name], moments[name]["exp_avg"], moments[name]["exp_avg_sq"]
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        parameter.sub_(mean / (square.sqrt() * scales[index] + EPSILON) * step_sizes[index])


def bias_corrections(beta: float, steps: Tensor) -> Tensor:
    """1 - β^t for each count t in ``steps``.

    It is written with an exponential, because on a CPU the compiler computes this once, but a power again for every
    few parameters, which made steps of small networks clearly longer.
    """
    return 1 - torch.exp(steps * math.log(beta)) if beta else torch.ones_like(steps)


def sgd(parameters: Mapping[str, Tensor], gradients: Mapping[str, Tensor], moments: Moments, step_size: float) -> None:
    """One step of gradient descent without momentum, in place."""
    torch._foreach_add_(list(parameters.values()), [gradients[name] for name in parameters], alpha=-step_size)


def muon_moments(parameters: Mapping[str, Tensor]) -> Moments:
    """The state before the first step: Muon's for hidden matrices, Adam's for everything else.

    Raises:
        ValueError: if this PyTorch lacks ``torch.optim._muon``, which has the step as a function; or if the network has
            no weight matrix before its last one.
    """
    if functional_muon is None:
        raise ValueError(
            f"expected PyTorch 2.9 or newer for the optimizer muon, got {torch.__version__}, whose torch.optim._muon "
            "is missing: install a newer one, or use another optimizer"
        )
    hidden = _hidden_matrices(parameters)
    if not hidden:
        raise ValueError(
            "expected a network with hidden weight matrices for the optimizer muon, got one without: use adam"
        )
    return {
        name: {"momentum_buffer": torch.zeros_like(parameter)}
        if name in hidden
        else adam_moments({name: parameter})[name]
        for name, parameter in parameters.items()
    }


def muon(parameters: Mapping[str, Tensor], gradients: Mapping[str, Tensor], moments: Moments, step_size: float) -> None:
    """One step of Muon (Jordan et al., 2024) for hidden matrices and of Adam for everything else, in place.

    Equal to ``torch.optim.Muon`` without weight decay, with steps scaled to the size of Adam's (Liu et al., 2025), so
    one step size suits both. The kernel of a convolution counts as a matrix with a row for each output channel, as its
    authors have it. Tensors are stacked: ``(members, ...)``.
    """
    hidden = _hidden_matrices(parameters)
    functional_muon(
        [kernel.view(len(kernel), -1) for name in hidden for kernel in parameters[name].unbind()],
        [kernel.reshape(len(kernel), -1) for name in hidden for kernel in gradients[name].unbind()],
        [kernel.view(len(kernel), -1) for name in hidden for kernel in moments[name]["momentum_buffer"].unbind()],
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
    """The names of all weight matrices and kernels of 2-D convolutions, except the last one."""
    return [name for name, parameter in parameters.items() if parameter.ndim in (3, 5)][:-1]


class Optimizer(NamedTuple):
    """An optimizer's initial state, and its step."""

    moments: Callable[[Mapping[str, Tensor]], Moments]
    step: Callable[[Mapping[str, Tensor], Mapping[str, Tensor], Moments, float], None]
    restarts: bool = False
    """Whether its state is reset at the start of each task."""


OPTIMIZERS: dict[str, Optimizer] = {
    "adam": Optimizer(adam_moments, adam),
    # A new task's first gradients are large, and Adam takes small steps while its average of squares contains them. Two
    # remedies: equal decay rates β1 = β2 (Dohare et al., 2023), or a reset at every task's start (Asadi et al., 2023).
    "adam-equal-betas": Optimizer(adam_moments, partial(adam, beta2=BETA1)),
    "adam-restarted": Optimizer(adam_moments, adam, restarts=True),
    # Without momentum, as Elsayed & Mahmood (2024) found best for most baselines; the second with weight decay.
    "adam-0-0.99": Optimizer(adam_moments, partial(adam, beta1=0.0, beta2=0.99)),
    "adamw-0-0.9999": Optimizer(adam_moments, partial(adam, beta1=0.0, beta2=0.9999, weight_decay=0.1)),
    "sgd": Optimizer(lambda parameters: {name: {} for name in parameters}, sgd),
    "muon": Optimizer(muon_moments, muon),
}


class NetworkOptimizer(torch.optim.Optimizer):
    """One of :data:`OPTIMIZERS` as a torch optimizer for a single network: it takes the step of a population of one.

    It holds all parameters, even if the step treats hidden matrices differently from the rest: a method that replaces
    units needs all their parameters in one optimizer.

    Args:
        parameters: all of the network's, in their order; each needs a gradient in every step.
        kind: the optimizer.
        lr: its step size.
    """

    def __init__(self, parameters: Iterable[Any], kind: Optimizer, lr: float) -> None:
        super().__init__(parameters, {"kind": kind, "lr": lr})
        stacked = {str(index): held.detach()[None] for index, held in enumerate(self.param_groups[0]["params"])}
        for held, moments in zip(self.param_groups[0]["params"], kind.moments(stacked).values(), strict=True):
            self.state[held] = {name: value if name == "step" else value[0] for name, value in moments.items()}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure
        """Update every parameter."""
        (group,) = self.param_groups
        parameters, gradients, moments = {}, {}, {}
        for index, held in enumerate(group["params"]):
            parameters[name := str(index)], gradients[name] = held[None], held.grad[None]
            # Only the count of steps is not stacked.
            moments[name] = {key: value if key == "step" else value[None] for key, value in self.state[held].items()}
        group["kind"].step(parameters, gradients, moments, group["lr"])
