"""Regression on a stream that drifts: one example at a time, never twice, from a function that keeps changing.

The target is a random network. Every so many steps some of its weights change sign, so that nothing learned stays right
for long. Printed is each stretch's mean squared error, measured before learning from each example, for Adam alone and
with spectral regularization. It shows where the line goes, and not that it is needed: in so few steps neither loses its
plasticity, and the two differ little.

python examples/streaming_regression.py          # 20,000 examples: one minute on one core
python examples/streaming_regression.py 2000
"""

import sys

import torch
from torch import nn

import supple

INPUTS, DRIFT_EVERY, STRETCHES = 16, 500, 10


def stream(steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs ``(steps, INPUTS)`` and their targets ``(steps, 1)`` by a network that drifts."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(steps, INPUTS, generator=random)
    hidden, out = (torch.randn(size, generator=random) for size in ((32, INPUTS), (1, 32)))
    targets = []
    for chunk in x.split(DRIFT_EVERY):
        targets.append((chunk @ hidden.T).sign() @ out.T / 32**0.5)
        hidden = torch.where(torch.rand(hidden.shape, generator=random) < 0.1, -hidden, hidden)
    return x, torch.cat(targets)


def learn(x: torch.Tensor, y: torch.Tensor, strength: float) -> list[float]:
    """The mean squared error over each stretch of the stream."""
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(INPUTS, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    supple.SpectralRegularizer(network, strength=strength).attach(optimizer)
    errors = []
    for example, target in zip(x, y, strict=True):
        error = (network(example) - target).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.detach())
    return [stretch.mean().item() for stretch in torch.stack(errors).chunk(STRETCHES)]


def main(steps: int = 20_000) -> dict[str, list[float]]:
    x, y = stream(steps)
    results = {"Adam": learn(x, y, strength=0.0), "Adam and spectral": learn(x, y, strength=1e-3)}
    print(f"mean squared error (the targets' variance is {y.var():.2f})")
    for name, errors in results.items():
        print(f"{name:18}", *(f"{error:6.3f}" for error in errors))
    return results


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*map(int, sys.argv[1:]))
