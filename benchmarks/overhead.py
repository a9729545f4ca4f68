"""What a regularizer costs: a whole training step with it over the same step without, paired and alternated in one run.

python benchmarks/overhead.py            # 4x256 ReLU MLP, 784 inputs, batch 512, Adam, float32
"""

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

import supple

Step = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Overhead:
    """What a regularizer costs: a whole training step with it over the same step without."""

    rounds: int = 30
    """How often each variant is timed, the variants taking turns."""
    steps: int = 20
    """Training steps in one timing."""
    batch: int = 512
    """Examples in a step."""
    threads: int = 1
    """Threads of torch; one is steadiest where cores are shared."""


def network() -> nn.Sequential:
    torch.manual_seed(0)
    widths = [784, 256, 256, 256, 256, 10]
    layers = [layer for sizes in itertools.pairwise(widths[:-1]) for layer in (nn.Linear(*sizes), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(*widths[-2:]))


def svd_penalty(model: nn.Module) -> Tensor:
    """The naive version: autograd through the full singular value decomposition."""
    total = torch.zeros(())
    for parameter in model.parameters():
        if parameter.ndim == 2:
            total = total + (torch.linalg.svdvals(parameter)[0] ** 2 - 1) ** 2
        else:
            total = total + parameter.square().sum() ** 2
    return 1e-4 * total


def variants(batch: int) -> dict[str, Step]:
    x, y = torch.randn(batch, 784), torch.randint(10, (batch,))

    def trained(model: nn.Module, penalty: Callable[[], Tensor] | None, attach: Callable[..., object] | None) -> Step:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
        if attach:
            attach(optimizer)

        def step() -> None:
            loss = functional.cross_entropy(model(x), y)
            if penalty:
                loss = loss + penalty()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return step

    closed, apart, autograd, naive, normalised = (network() for _ in range(5))
    for layer in normalised:
        if isinstance(layer, nn.Linear):
            nn.utils.parametrizations.spectral_norm(layer)
    return {
        "none": trained(network(), None, None),
        "none again": trained(network(), None, None),
        "spectral": trained(closed, None, supple.SpectralRegularizer(closed).attach),
        "decoupled spectral": trained(apart, None, supple.SpectralRegularizer(apart, 1.0, decoupled=True).attach),
        "spectral, penalty() in the loss": trained(autograd, supple.SpectralRegularizer(autograd).penalty, None),
        "torch spectral_norm": trained(normalised, None, None),
        "autograd through a full SVD": trained(naive, lambda: svd_penalty(naive), None),
    }


def main() -> None:
    config = tyro.cli(Overhead)
    torch.set_num_threads(config.threads)
    steps = variants(config.batch)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for turn in track(range(-1, config.rounds), description="timing"):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            for _ in range(config.steps):
                steps[name]()
            if turn >= 0:  # the first turn warms up
                seconds[name].append((time.perf_counter() - start) / config.steps)
    table = Table("variant", "ms a step", "ratio to none", "quartiles", title=f"{torch.__version__}, {config}")
    for name, times in seconds.items():
        ratios = [time / base for time, base in zip(times, seconds["none"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        table.add_row(name, f"{1e3 * statistics.median(times):.2f}", f"{middle:.3f}", f"{low:.3f} to {high:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
