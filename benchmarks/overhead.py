"""What a method costs: a whole training step with it over the same step without, paired and alternated in one run.

python benchmarks/overhead.py                                # the spectral regularizer against the naive versions
python benchmarks/overhead.py --methods l2 l2-init redo      # any methods of the table
python benchmarks/overhead.py --network conv --methods all
"""

import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

import supple
from supple.lab.methods import METHODS
from supple.mitigators import Mitigator

Step = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Overhead:
    """What a method costs: a whole training step with it over the same step without."""

    network: Literal["mlp", "conv"] = "mlp"
    """A 4x256 ReLU MLP on 784 inputs, or a small convolutional network on 3x32x32 images; Adam, float32."""
    methods: tuple[str, ...] = ()
    """Names from the table of methods, or `all`; when left out, the spectral regularizer against the naive versions."""
    rounds: int = 30
    """How often each variant is timed, the variants taking turns."""
    steps: int = 20
    """Training steps in one timing."""
    batch: int = 512
    """Examples in a step."""
    threads: int = 1
    """Threads of torch; one is steadiest where cores are shared."""
    out: Path | None = None
    """A JSON file for the ratios of every round."""


def mlp() -> nn.Sequential:
    widths = [784, 256, 256, 256, 256]
    layers = [layer for sizes in itertools.pairwise(widths) for layer in (nn.Linear(*sizes), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(256, 10))


def conv() -> nn.Sequential:
    """Two convolutions, three linear layers: the network of Kumar et al. for Continual ImageNet."""
    convolutions = [nn.Conv2d(3, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 16, 5), nn.ReLU(), nn.MaxPool2d(2)]
    linear = [nn.Flatten(), nn.Linear(400, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 2)]
    return nn.Sequential(*convolutions, *linear)


NETWORKS = {"mlp": (mlp, (784,), 10), "conv": (conv, (3, 32, 32), 2)}


def svd_penalty(model: nn.Module) -> Tensor:
    """The naive version: autograd through the full singular value decomposition."""
    total = torch.zeros(())
    for parameter in model.parameters():
        if parameter.ndim == 1:
            total = total + parameter.square().sum() ** 2
        else:
            total = total + (torch.linalg.svdvals(parameter.flatten(1))[0] ** 2 - 1) ** 2
    return 1e-4 * total


def variants(config: Overhead) -> dict[str, Step]:
    make, shape, classes = NETWORKS[config.network]
    x, y = torch.randn(config.batch, *shape), torch.randint(classes, (config.batch,))

    def step(
        mitigator: Callable[[nn.Module], Mitigator] | None = None,
        penalty: Callable[[nn.Module], Callable[[], Tensor]] | None = None,
        change: Callable[[nn.Module], object] = lambda model: None,
    ) -> Step:
        torch.manual_seed(0)
        model = make()
        change(model)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
        added = penalty(model) if penalty else None
        if mitigator:
            mitigator(model).attach(optimizer)

        def train() -> None:
            loss = functional.cross_entropy(model(x), y)
            if added:
                loss = loss + added()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return train

    def normalize(model: nn.Module) -> None:
        for layer in list(model.children()):
            if isinstance(layer, (nn.Linear, nn.Conv2d)):
                nn.utils.parametrizations.spectral_norm(layer)

    acting = [name for name, method in METHODS.items() if method.strength and not method.model]
    names = acting if config.methods == ("all",) else config.methods
    chosen = {
        name: step(lambda model, name=name: METHODS[name].mitigator(model, METHODS[name].strength)) for name in names
    }
    naive = {
        "spectral": step(supple.SpectralRegularizer),
        "decoupled spectral": step(lambda model: supple.SpectralRegularizer(model, decoupled=True)),
        "spectral, penalty() in the loss": step(penalty=lambda model: supple.SpectralRegularizer(model).penalty),
        "torch's spectral_norm": step(change=normalize),
        "autograd through a full SVD": step(penalty=lambda model: lambda: svd_penalty(model)),
    }
    return {"none": step(), "none again": step(), **(chosen or naive)}


def main() -> None:
    config = tyro.cli(Overhead)
    torch.set_num_threads(config.threads)
    torch.set_flush_denormal(True)
    steps = variants(config)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for turn in track(range(-1, config.rounds), description="timing"):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            for _ in range(config.steps):
                steps[name]()
            if turn >= 0:  # the first turn warms up
                seconds[name].append((time.perf_counter() - start) / config.steps)
    ratios = {
        name: [time / base for time, base in zip(times, seconds["none"], strict=True)]
        for name, times in seconds.items()
    }
    table = Table("variant", "ms a step", "ratio to none", "quartiles")
    for name, of_none in ratios.items():
        low, middle, high = statistics.quantiles(of_none, n=4)
        table.add_row(
            name, f"{1e3 * statistics.median(seconds[name]):.2f}", f"{middle:.3f}", f"{low:.3f} to {high:.3f}"
        )
    console = Console()
    console.print(
        f"{config.network}, batch {config.batch}, {config.rounds} rounds of {config.steps} steps", highlight=False
    )
    console.print(table)
    if config.out:
        facts = {"torch": torch.__version__, "platform": platform.platform(), "config": asdict(config) | {"out": None}}
        config.out.parent.mkdir(parents=True, exist_ok=True)
        config.out.write_text(json.dumps({**facts, "seconds": seconds}, indent=1))


if __name__ == "__main__":
    main()
