"""Random labels on MNIST in plain PyTorch, only the images come from supple: do Adam's moments impair the next task?

    python benchmarks/plain_adam.py       # three minutes

The paper's network with LayerNorm, two tasks of 40 epochs; Adam unchanged, with equal betas, or restarted in between.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import tyro
from measuring import use_threads, write
from torch import nn
from torch.nn.functional import cross_entropy

from supple.lab import datasets

VARIANTS = {"adam": (0.999, False), "equal betas": (0.9, False), "restarted": (0.999, True)}


@dataclass(frozen=True, kw_only=True)
class PlainAdam:
    """Random labels on MNIST in plain PyTorch: do Adam's moments impair the next task?"""

    seeds: int = 3
    """Networks per variant, from seed 0."""
    out: Path = Path("results/paper/plain-adam.json")
    """The file for the accuracies: by variant, for each seed those of both tasks."""

    def __call__(self) -> None:
        use_threads(1)
        torch.set_float32_matmul_precision("medium")
        data = datasets.load("mnist")
        x = data.normalized(data.train.images).flatten(1)
        reached = {
            name: [accuracies(x, *variant, seed) for seed in range(self.seeds)] for name, variant in VARIANTS.items()
        }
        write(self.out, self, accuracies=reached)
        for name, of_seeds in reached.items():
            print(f"{name:12}", "  ".join(f"{first:.3f} -> {second:.3f}" for first, second in of_seeds))


def accuracies(x: torch.Tensor, beta2: float, restarted: bool, seed: int) -> list[float]:
    """The training accuracy at the end of each of two tasks."""
    torch.manual_seed(seed)
    widths = [x.shape[1], 256, 256, 256, 256]
    hidden = [
        layer
        for before, after in pairwise(widths)
        for layer in (nn.Linear(before, after), nn.LayerNorm(after), nn.ReLU())
    ]
    network = nn.Sequential(*hidden, nn.Linear(256, 10))
    reached = []
    for task in range(2):
        if task == 0 or restarted:
            optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, betas=(0.9, beta2))
        y = torch.randint(10, (len(x),))
        for _ in range(40):
            for batch in torch.randperm(len(x)).split(512):
                loss = cross_entropy(network(x[batch]), y[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        reached.append((network(x).argmax(1) == y).double().mean().item())
    return reached


if __name__ == "__main__":
    tyro.cli(PlainAdam)()
