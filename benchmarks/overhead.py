"""What a method costs: a whole training step with it over the same step without, paired and alternated in one run.

python benchmarks/overhead.py                                # the spectral regularizer against the naive versions
python benchmarks/overhead.py --methods l2 l2-init redo      # any methods of the table
python benchmarks/overhead.py --network conv --methods all
python benchmarks/overhead.py --methods all --rounds 100     # 2,000 steps of each: what acts rarely is in the mean
"""

import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

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
from supple.nn import CReLU
from supple.nn import spectral_normalization as normalized

Step = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Overhead:
    """What a method costs: a whole training step with it over the same step without."""

    network: Literal["mlp", "conv"] = "mlp"
    """A 4x256 ReLU MLP on 784 inputs, or a small convolutional network on 3x32x32 images; Adam, float32."""
    methods: tuple[str, ...] = ()
    """Names from the table of methods, or `all`; when left out, the spectral regularizer against the naive versions.
    Those that change the network are timed as a whole changed network; on the MLP alone."""
    rounds: int = 30
    """How often each variant is timed, the variants taking turns."""
    steps: int = 20
    """Training steps in one timing."""
    batch: int = 512
    """Examples in a step."""
    threads: int = 1
    """Threads of torch; one is steadiest where cores are shared."""
    out: Path | None = None
    """A JSON file for the seconds of every round."""


def mlp(*, layer_norm: bool = False, activation: str = "relu", spectral_normalization: bool = False) -> nn.Sequential:
    """The options are those that methods set in the laboratory's."""
    width, passed_on = (200, 400) if activation == "crelu" else (256, 256)  # of as many parameters
    layers: list[nn.Module] = []
    for inputs in [784] + [passed_on] * 3:
        layers += [nn.Linear(inputs, width), *([nn.LayerNorm(width)] if layer_norm else [])]
        layers += [CReLU() if activation == "crelu" else nn.ReLU()]
    layers += [nn.Linear(passed_on, 10)]
    if spectral_normalization:
        layers = [normalized(layer) if isinstance(layer, nn.Linear) else layer for layer in layers]
    return nn.Sequential(*layers)


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


def normal_numbers(model: nn.Module) -> Callable[[], Tensor]:
    """Nothing but what methods wait for that perturb every parameter."""
    numbers = torch.empty(sum(parameter.numel() for parameter in model.parameters()))
    return lambda: numbers.normal_().new_zeros(())


def variants(config: Overhead) -> dict[str, Step]:
    make, shape, classes = NETWORKS[config.network]
    x, y = torch.randn(config.batch, *shape), torch.randint(classes, (config.batch,))

    def step(
        mitigator: Callable[[nn.Module], Mitigator] | None = None,
        penalty: Callable[[nn.Module], Callable[[], Tensor]] | None = None,
        change: Callable[[nn.Module], object] = lambda model: None,
        **options: Any,
    ) -> Step:
        torch.manual_seed(0)
        model = make(**options)
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

    usable = [name for name, method in METHODS.items() if name != "none" and not (method.model and make is conv)]
    names = usable if config.methods == ("all",) else config.methods
    chosen = {
        name: step(
            lambda model, name=name: METHODS[name].mitigator(model, METHODS[name].strength), **METHODS[name].model
        )
        for name in names
    }
    if config.methods == ("all",):
        chosen["a normal number a parameter"] = step(penalty=normal_numbers)
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
    # With one thread its own seconds: what other processes do with the cores is then not counted.
    clock = time.thread_time if config.threads == 1 else time.perf_counter
    for turn in track(range(-1, config.rounds), description="timing"):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = clock()
            for _ in range(config.steps):
                steps[name]()
            if turn >= 0:  # the first turn warms up
                seconds[name].append((clock() - start) / config.steps)
    ratios = {
        name: [time / base for time, base in zip(times, seconds["none"], strict=True)]
        for name, times in seconds.items()
    }
    table = Table("variant", "ms a step", "ratio to none", "quartiles", "ratio of all steps")
    for name, of_none in ratios.items():
        low, middle, high = statistics.quantiles(of_none, n=4)
        milliseconds, all_steps = 1e3 * statistics.median(seconds[name]), sum(seconds[name]) / sum(seconds["none"])
        table.add_row(name, f"{milliseconds:.2f}", f"{middle:.3f}", f"{low:.3f} to {high:.3f}", f"{all_steps:.3f}")
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
