"""The cost of a method: time of a training step with it, relative to a step without it; both take turns in one run.

python benchmarks/overhead.py                                # the spectral regularizer against naive implementations
python benchmarks/overhead.py --methods l2 l2-init redo      # any methods of the table
python benchmarks/overhead.py --network conv --methods all
python benchmarks/overhead.py --methods all --rounds 100     # 2,000 steps each: includes methods that act rarely
python benchmarks/overhead.py --within                       # the spectral regularizer's own time inside steps
"""

import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
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
from supple.lab import datasets, models
from supple.mitigators import Mitigator
from supple.training.methods import METHODS

Step = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Overhead:
    """The cost of a method: time of a training step with it, relative to a step without it."""

    network: Literal["mlp", "conv", "resnet18", "vit-tiny", "gpt2"] = "mlp"
    """A network of the laboratory (the MLP on 784 inputs, the others on 3x32x32 images), or a transformer with 124
    million parameters on 256 tokens (gpt2); Adam, float32."""
    methods: tuple[str, ...] = ()
    """Names from the table of methods, or `all`; when left out, the spectral regularizer against naive implementations.
    For methods that change the network, the whole changed network is timed, only with the MLP."""
    rounds: int = 30
    """How often each variant is timed; the variants take turns."""
    steps: int = 20
    """Training steps in one timing."""
    within: bool = False
    """Instead, time the attached spectral regularizer, in both forms, inside training steps. The result then does not
    depend on differences between steps, which exceed a few percent on a shared machine."""
    threads: int = 1
    """Threads of torch; timings with one thread vary least on shared cores."""
    out: Path | None = None
    """A JSON file for the seconds of every round."""


def of_images(model: str, *shape: int, classes: int) -> Callable[..., nn.Module]:
    """The function that builds a network of the laboratory for images of a shape."""
    examples = datasets.Examples(torch.zeros(1, *shape, dtype=torch.uint8), torch.zeros(1, dtype=torch.long))
    channels = (0.0,) * shape[0], (1.0,) * shape[0]
    return partial(models.load(model), datasets.Dataset(examples, None, None, classes, *channels))


class GPT2(nn.Module):
    """A transformer with the shape of GPT-2 small, 12 blocks of width 768; returns logits."""

    def __init__(self) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel

        super().__init__()
        self.whole = GPT2LMHeadModel(GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False))

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.whole(tokens).logits
        return logits.flatten(0, 1)


NETWORKS: dict[str, tuple[Callable[..., nn.Module], Callable[[], tuple[Tensor, Tensor]]]] = {
    "mlp": (of_images("mlp", 1, 28, 28, classes=10), lambda: (torch.randn(512, 1, 28, 28), torch.randint(10, (512,)))),
    "conv": (of_images("conv", 3, 32, 32, classes=2), lambda: (torch.randn(512, 3, 32, 32), torch.randint(2, (512,)))),
    **{
        name: (
            of_images(name, 3, 32, 32, classes=10),
            lambda: (torch.randn(250, 3, 32, 32), torch.randint(10, (250,))),
        )
        for name in ("resnet18", "vit-tiny")
    },
    "gpt2": (GPT2, lambda: (torch.randint(50257, (8, 256)), torch.randint(50257, (2048,)))),
}


def plain_loop(model: nn.Module) -> Callable[[], None]:
    """The same regularizer in a simple implementation: a loop with one power iteration per parameter."""
    vectors = {name: torch.randn(len(weight)) for name, weight in model.named_parameters() if weight.ndim > 1}

    @torch.no_grad()
    def regularize() -> None:
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                matrix = parameter.flatten(1)
                v = functional.normalize(matrix.T @ vectors[name], dim=0)
                stretched = matrix @ v
                vectors[name] = u = functional.normalize(stretched, dim=0)
                sigma = u @ stretched
                parameter.grad += 1e-4 * 4 * sigma * (sigma**2 - 1) * torch.outer(u, v).view_as(parameter)
            else:
                parameter.grad += 1e-4 * 4 * parameter.norm() ** 2 * parameter

    return regularize


def svd_penalty(model: nn.Module) -> Tensor:
    """The naive implementation: autograd through the full singular value decomposition."""
    total = torch.zeros(())
    for parameter in model.parameters():
        if parameter.ndim == 1:
            total = total + parameter.square().sum() ** 2
        else:
            total = total + (torch.linalg.svdvals(parameter.flatten(1))[0] ** 2 - 1) ** 2
    return 1e-4 * total


def normal_numbers(model: nn.Module) -> Callable[[], Tensor]:
    """Only draw a normal number per parameter: the minimum cost of methods that perturb every parameter."""
    numbers = torch.empty(sum(parameter.numel() for parameter in model.parameters()))
    return lambda: numbers.normal_().new_zeros(())


def variants(config: Overhead) -> dict[str, Step]:
    make, batch = NETWORKS[config.network]
    x, y = batch()

    def step(
        mitigator: Callable[[nn.Module], Mitigator] | None = None,
        penalty: Callable[[nn.Module], Callable[[], Tensor]] | None = None,
        change: Callable[[nn.Module], object] = lambda model: None,
        after: Callable[[nn.Module], Callable[[], None]] = lambda model: lambda: None,
        **options: Any,
    ) -> Step:
        torch.manual_seed(0)
        model = make(**options)
        change(model)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
        added, last = penalty(model) if penalty else None, after(model)
        if mitigator:
            mitigator(model).attach(optimizer)

        def train() -> None:
            loss = functional.cross_entropy(model(x), y)
            if added:
                loss = loss + added()
            optimizer.zero_grad()
            loss.backward()
            last()
            optimizer.step()

        return train

    def normalize(model: nn.Module) -> None:
        for layer in list(model.modules()):
            if isinstance(layer, (nn.Linear, nn.Conv2d)):
                nn.utils.parametrizations.spectral_norm(layer)

    usable = [
        name for name, method in METHODS.items() if name != "none" and not (method.network and config.network != "mlp")
    ]
    names = usable if config.methods == ("all",) else config.methods
    chosen = {
        name: step(lambda model, name=name: METHODS[name].on(model, METHODS[name].strength), **METHODS[name].network)
        for name in names
    }
    if config.methods == ("all",):
        chosen["a normal number a parameter"] = step(penalty=normal_numbers)
    if chosen:
        return {"none": step(), "none again": step(), **chosen}
    naive = {
        "none": step(),
        "none again": step(),
        "spectral": step(supple.SpectralRegularizer),
        "a plain loop": step(after=plain_loop),
    }
    if config.network != "gpt2":  # so many copies of it don't fit in memory
        naive |= {
            "decoupled spectral": step(lambda model: supple.SpectralRegularizer(model, decoupled=True)),
            "spectral, penalty() in the loss": step(penalty=lambda model: supple.SpectralRegularizer(model).penalty),
            "torch's spectral_norm": step(change=normalize),
            "autograd through a full SVD": step(penalty=lambda model: lambda: svd_penalty(model)),
        }
    return naive


class Stopwatch:
    """Measures the seconds between two hooks of a step, and so of the hooks registered between them."""

    def __init__(self) -> None:
        self.seconds, self.began = 0.0, 0.0

    def start(self, *_: object) -> None:
        self.began = time.thread_time()

    def stop(self, *_: object) -> None:
        self.seconds += time.thread_time() - self.began


def shares_within(config: Overhead) -> dict[str, list[float]]:
    """By form and round: the time of all steps divided by this time without the attached regularizer's own."""
    make, batch = NETWORKS[config.network]
    x, y = batch()
    ratios: dict[str, list[float]] = {}
    for form, options in {"coupled": {}, "decoupled": {"decoupled": True}}.items():
        model, watch = make(), Stopwatch()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
        for register in (optimizer.register_step_pre_hook, optimizer.register_step_post_hook):
            register(watch.start)
        supple.SpectralRegularizer(model, **options).attach(optimizer)
        for register in (optimizer.register_step_pre_hook, optimizer.register_step_post_hook):
            register(watch.stop)
        ratios[form] = []
        for turn in track(range(-1, config.rounds), description=f"timing {form}"):
            watch.seconds, start = 0.0, time.thread_time()
            for _ in range(config.steps):
                optimizer.zero_grad()
                functional.cross_entropy(model(x), y).backward()
                optimizer.step()
            whole = time.thread_time() - start
            if turn >= 0:  # the first turn warms up
                ratios[form].append(whole / (whole - watch.seconds))
    return ratios


def main() -> None:
    config = tyro.cli(Overhead)
    torch.set_num_threads(config.threads)
    torch.set_flush_denormal(True)
    facts = {"torch": torch.__version__, "platform": platform.platform(), "config": asdict(config) | {"out": None}}
    if config.within:
        ratios = shares_within(config)
        for form, of_form in ratios.items():
            low, middle, high = statistics.quantiles(of_form, n=4)
            print(f"{config.network}, {form}: {middle:.3f} ({low:.3f} to {high:.3f})")
        if config.out:
            config.out.write_text(json.dumps({**facts, "ratios": ratios}, indent=1))
        return
    steps = variants(config)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    # With one thread, measure its processor time, which excludes other processes.
    clock = time.thread_time if config.threads == 1 else time.perf_counter
    for turn in track(range(-1, config.rounds), description="timing"):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = clock()
            for _ in range(config.steps):
                steps[name]()
            if turn >= 0:  # the first turn warms up
                seconds[name].append((clock() - start) / config.steps)
    ratios_of = {
        name: [time / base for time, base in zip(times, seconds["none"], strict=True)]
        for name, times in seconds.items()
    }
    table = Table("variant", "ms a step", "ratio to none", "quartiles", "ratio of all steps")
    for name, of_none in ratios_of.items():
        low, middle, high = statistics.quantiles(of_none, n=4)
        milliseconds, all_steps = 1e3 * statistics.median(seconds[name]), sum(seconds[name]) / sum(seconds["none"])
        table.add_row(name, f"{milliseconds:.2f}", f"{middle:.3f}", f"{low:.3f} to {high:.3f}", f"{all_steps:.3f}")
    console = Console()
    console.print(f"{config.network}, {config.rounds} rounds of {config.steps} steps", highlight=False)
    console.print(table)
    if config.out:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        config.out.write_text(json.dumps({**facts, "seconds": seconds}, indent=1))


if __name__ == "__main__":
    main()
