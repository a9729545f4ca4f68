"""The cost of a method: time of a training step with it, relative to a step without it; both take turns in one run.

    python benchmarks/overhead.py                              # the spectral regularizer against naive implementations
    python benchmarks/overhead.py --methods l2 l2-init redo    # any methods of the table
    python benchmarks/overhead.py --network conv --methods all
    python benchmarks/overhead.py --methods all --rounds 100   # 2,000 steps each: includes methods that act rarely
    python benchmarks/overhead.py --within                     # the spectral regularizer's own time inside steps

Two minutes with the MLP; 100 rounds of all methods take a quarter of an hour. Large networks: `--steps 1`.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import tyro
from measuring import ratios, repeated, take_turns, use_threads, write
from networks import NETWORKS
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

import supple
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

    def __call__(self) -> None:
        use_threads(self.threads)
        if self.within:
            shares = shares_within(self)
            for form, of_form in shares.items():
                low, middle, high = statistics.quantiles(of_form, n=4)
                print(f"{self.network}, {form}: {middle:.3f} ({low:.3f} to {high:.3f})")
            write(self.out, self, ratios=shares)
            return
        steps = {name: repeated(self.steps, step) for name, step in variants(self).items()}
        # With one thread, measure its processor time, which excludes other processes.
        seconds = take_turns(steps, self.rounds, time.thread_time if self.threads == 1 else time.perf_counter)
        seconds = {name: [value / self.steps for value in values] for name, values in seconds.items()}
        show(self, seconds)
        write(self.out, self, seconds=seconds)


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


def normalize(model: nn.Module) -> None:
    """torch's own spectral normalization of every layer, in place."""
    for layer in list(model.modules()):
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            nn.utils.parametrizations.spectral_norm(layer)


def step_of(
    network: str,
    mitigator: Callable[[nn.Module], Mitigator] | None = None,
    penalty: Callable[[nn.Module], Callable[[], Tensor]] | None = None,
    change: Callable[[nn.Module], object] = lambda model: None,
    after: Callable[[nn.Module], Callable[[], None]] = lambda model: lambda: None,
    **options: str | bool,
) -> Step:
    """A training step of a new network, always on the same batch.

    Args:
        network: a name from ``NETWORKS``.
        mitigator: attached to the optimizer.
        penalty: added to the loss.
        change: changes the network before its optimizer is built.
        after: called after the backward pass.
        options: of the network.
    """
    make, batch = NETWORKS[network]
    torch.manual_seed(0)
    (x, y), model = batch(), make(**options)
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


def variants(config: Overhead) -> dict[str, Step]:
    """The steps to compare by name, the one without a method first and twice."""
    step = partial(step_of, config.network)
    plain = {"none": step(), "none again": step()}
    if not config.methods:
        return plain | implementations(step, few=config.network == "gpt2")
    names = config.methods
    if names == ("all",):
        usable = {name: method for name, method in METHODS.items() if config.network == "mlp" or not method.network}
        names = tuple(name for name in usable if name != "none")
        plain["a normal number a parameter"] = step(penalty=normal_numbers)
    return plain | {
        name: step(lambda model, name=name: METHODS[name].on(model, METHODS[name].strength), **METHODS[name].network)
        for name in names
    }


def implementations(step: Callable[..., Step], *, few: bool) -> dict[str, Step]:
    """The spectral regularizer and other ways to do the same; ``few`` of a network whose copies fill the memory."""
    found = {"spectral": step(supple.SpectralRegularizer), "a plain loop": step(after=plain_loop)}
    if not few:
        found |= {
            "decoupled spectral": step(lambda model: supple.SpectralRegularizer(model, decoupled=True)),
            "spectral, penalty() in the loss": step(penalty=lambda model: supple.SpectralRegularizer(model).penalty),
            "torch's spectral_norm": step(change=normalize),
            "autograd through a full SVD": step(penalty=lambda model: lambda: svd_penalty(model)),
        }
    return found


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
    shares: dict[str, list[float]] = {}
    for form, options in {"coupled": {}, "decoupled": {"decoupled": True}}.items():
        model, watch = make(), Stopwatch()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
        for register in (optimizer.register_step_pre_hook, optimizer.register_step_post_hook):
            register(watch.start)
        supple.SpectralRegularizer(model, **options).attach(optimizer)
        for register in (optimizer.register_step_pre_hook, optimizer.register_step_post_hook):
            register(watch.stop)
        shares[form] = []
        for turn in track(range(-1, config.rounds), description=f"timing {form}"):
            watch.seconds, start = 0.0, time.thread_time()
            for _ in range(config.steps):
                optimizer.zero_grad()
                functional.cross_entropy(model(x), y).backward()
                optimizer.step()
            whole = time.thread_time() - start
            if turn >= 0:  # the first turn warms up
                shares[form].append(whole / (whole - watch.seconds))
    return shares


def show(config: Overhead, seconds: dict[str, list[float]]) -> None:
    """Print the times as a table."""
    table = Table("variant", "ms a step", "ratio to none", "quartiles", "ratio of all steps")
    for name, times in seconds.items():
        low, middle, high = statistics.quantiles(ratios(times, seconds["none"]), n=4)
        milliseconds, all_steps = 1e3 * statistics.median(times), sum(times) / sum(seconds["none"])
        table.add_row(name, f"{milliseconds:.2f}", f"{middle:.3f}", f"{low:.3f} to {high:.3f}", f"{all_steps:.3f}")
    console = Console()
    console.print(f"{config.network}, {config.rounds} rounds of {config.steps} steps", highlight=False)
    console.print(table)


if __name__ == "__main__":
    tyro.cli(Overhead)()
