"""A training loop written out on dictionaries of float64 tensors, to hold a method's own steps against."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from oracles.regularizers import Parameters, owned, parameters64
from supple import Mitigator

LR = 0.05
Step = Callable[[Parameters, Parameters, int], Parameters]
"""Parameters, the gradients of the loss there, and the number of the step from 1, to the new parameters."""


def small_network() -> nn.Module:
    """Something of everything that the methods tell apart."""
    return nn.Sequential(
        nn.Conv1d(4, 6, 3, groups=2, padding=1),
        nn.GroupNorm(2, 6),
        nn.Tanh(),
        nn.ConvTranspose1d(6, 2, 2),
        nn.Flatten(),
        nn.Linear(10, 5),
        nn.LayerNorm(5),
        nn.Tanh(),
        nn.Linear(5, 3),
    ).double()


def batch(step: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(step)
    sizes = (16, 4, 4), (16, 3)
    x, y = (torch.randn(size, generator=random, dtype=torch.float64) for size in sizes)
    return x, y


def gradients(network: nn.Module, parameters: Parameters, step: int) -> Parameters:
    x, y = batch(step)
    leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    (functional_call(network, leaves, (x,)) - y).square().mean().backward()
    return {name: leaf.grad for name, leaf in leaves.items()}


def descended(penalty: Callable[[Parameters], Tensor], strength: float) -> Step:
    """Plain gradient descent on the loss plus ``strength · penalty``, by autograd."""

    def step(parameters: Parameters, of_loss: Parameters, number: int) -> Parameters:
        leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
        (strength * penalty(leaves)).backward()
        zero = torch.zeros((), dtype=torch.float64)
        pulls = {name: zero if leaf.grad is None else leaf.grad for name, leaf in leaves.items()}
        return {name: parameters[name] - LR * (of_loss[name] + pulls[name]) for name in parameters}

    return step


def assert_follows(
    network: nn.Module,
    method: Mitigator,
    step: Step,
    rtol: float = 1e-9,
    steps: int = 20,
    optimizer: type[torch.optim.Optimizer] = torch.optim.SGD,
) -> None:
    """``method`` takes ``network`` where ``step`` takes a copy of its parameters, at every one of the steps."""
    optimizer = optimizer(network.parameters(), lr=LR)
    method.attach(optimizer)
    expected = parameters64(network)
    for number in range(1, steps + 1):
        expected = step(expected, gradients(network, expected, number), number)
        x, y = (tensor.to(next(network.parameters()).device) for tensor in batch(number))
        optimizer.zero_grad()
        (network(x) - y).square().mean().backward()
        optimizer.step()
        for name, _, _, parameter in owned(network):
            torch.testing.assert_close(
                parameter.detach().cpu(),
                expected[name],
                rtol=rtol,
                atol=rtol,
                msg=lambda m, at=f"step {number}, {name}": f"{at}: {m}",
            )
