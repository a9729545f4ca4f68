"""Does the plasticity test tell the truth? Sixty situations in which the truth is known because they were built so.

    python benchmarks/situations.py       # ten minutes on one core; a table, and rows in results/situations/

Twenty networks that have lost plasticity, twenty whose optimizer stalls, twenty with which nothing is wrong: five
causes each, in four networks with three kinds of data; *many tasks* is always the ReLU network on random labels. Rules
and situations were settled on other seeds than the reported ones.
"""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import torch
import tyro
from measuring import use_threads, write_environment
from rich.progress import track
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

import supple

Batches = list[tuple[Tensor, Tensor]]
Loss = Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor]


def perceptron(inputs: int, outputs: int, activation: type[nn.Module] = nn.ReLU, norm: bool = False) -> nn.Module:
    sizes = itertools.pairwise((inputs, 128, 128, 128))
    layers = [part for a, b in sizes for part in (nn.Linear(a, b), *[nn.LayerNorm(b)] * norm, activation())]
    return nn.Sequential(*layers, nn.Linear(128, outputs))


def convolutional(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 64),
        nn.ReLU(),
        nn.Linear(64, outputs),
    )


class Task:
    """Data that change: digits with random labels, digits with permuted pixels, or the outputs of a random network."""

    def __init__(self, kind: str) -> None:
        self.kind, self.outputs = kind, 1 if kind == "regression" else 10
        digits = load_digits()
        self.images = torch.tensor(digits.data, dtype=torch.float32) / 8 - 1
        self.labels = torch.tensor(digits.target)

    def batches(self, seed: int, size: int = 64, count: int = 15) -> Batches:
        random = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(self.images), generator=random)[: size * count]
        x, y = self.images[chosen], self.labels[chosen]
        if self.kind == "random labels":
            y = torch.randint(10, y.shape, generator=random)
        elif self.kind == "pixels":
            x = x[:, torch.randperm(64, generator=random)]
        else:
            x = torch.randn(size * count, 64, generator=random)
            y = torch.sin(x @ torch.randn(64, 8, generator=random) / 3).sum(1, keepdim=True)
        return list(zip(x.split(size), y.split(size), strict=True))

    def loss(self, network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (mse_loss if self.kind == "regression" else cross_entropy)(network(batch[0]), batch[1])


def train(network: nn.Module, optimizer: Any, loss: Loss, batches: Batches, epochs: int, scale: float = 1.0) -> None:
    for batch in batches * epochs:
        optimizer.zero_grad()
        (scale * loss(network, batch)).backward()
        optimizer.step()


@dataclass(frozen=True)
class Situation:
    """A network with a task behind it, and the optimizer."""

    network: nn.Module
    optimizer: Any
    task: Task
    seed: int

    @torch.enable_grad()
    def learn(self, tasks: int, epochs: int = 20, scale: float = 1.0) -> None:
        for number in range(tasks):
            train(
                self.network,
                self.optimizer,
                self.task.loss,
                self.task.batches(1000 * self.seed + number),
                epochs,
                scale,
            )


def last_before_activation(network: nn.Module) -> list[Any]:
    """The layers whose bias is added right before a hidden activation: norms, where there are any."""
    norms = [part for part in network.modules() if isinstance(part, nn.LayerNorm)]
    return norms or matrices(network)[:-1]


def matrices(network: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    return [part for part in network.modules() if isinstance(part, nn.Linear | nn.Conv2d)]


# Networks that have lost plasticity: hidden layers pass on next to nothing, or it was lost over many tasks.


@torch.no_grad()
def dead_units(one: Situation) -> None:
    """All but two units of every hidden layer never respond."""
    one.learn(1)
    for layer in last_before_activation(one.network):
        layer.bias[2:] = -100.0
        layer.weight[2:] = 0.0


@torch.no_grad()
def zeros(one: Situation) -> None:
    """All weights and biases are zero, so that only the last bias has a gradient."""
    one.learn(1)
    for parameter in one.network.parameters():
        parameter.zero_()


@torch.no_grad()
def grown_weights(one: Situation) -> None:
    """So large that steps of the usual size change next to nothing."""
    one.learn(1)
    for layer in matrices(one.network)[:-1]:
        layer.weight.mul_(1000.0)
        layer.bias.mul_(1000.0)


@torch.no_grad()
def dead_layer(one: Situation) -> None:
    """The second hidden layer never responds, and has no gradient."""
    one.learn(1)
    layer = last_before_activation(one.network)[1]
    layer.bias.fill_(-100.0)
    layer.weight.zero_()


def many_tasks(one: Situation) -> None:
    """Forty memorized tasks at a large step size."""
    one.learn(40)


# Optimizers that stall: what they remember of past gradients makes their steps too small.


def rescaled_loss(one: Situation) -> None:
    """The loss was 3,000 times larger, as when rewards are rescaled."""
    one.learn(1)
    one.learn(1, epochs=4, scale=3000.0)


def burst(one: Situation) -> None:
    """Three steps with gradients ten thousand times too large; what they did to the network was rolled back."""
    one.learn(1)
    before = {name: value.clone() for name, value in one.network.state_dict().items()}
    train(one.network, one.optimizer, one.task.loss, one.task.batches(77)[:3], 1, scale=1e4)
    one.network.load_state_dict(before)


# Networks and optimizers with which nothing is wrong.


def kept(one: Situation) -> None:
    """Ten tasks with a regularizer; then the test without it, and with a new optimizer, as Adam's state may stall."""
    method = supple.SpectralRegularizer(one.network, decoupled=True).attach(one.optimizer)
    one.learn(10)
    method.detach()
    one.optimizer.state.clear()


SITUATIONS: dict[str, dict[str, Callable[[Situation], object]]] = {
    "network": {
        "dead units": dead_units,
        "zeros": zeros,
        "grown weights": grown_weights,
        "dead layer": dead_layer,
        "many tasks": many_tasks,
    },
    "optimizer": {
        "rescaled loss": rescaled_loss,
        "burst": burst,
        "rescaled loss, AMSGrad": rescaled_loss,
        "rescaled loss, Adagrad": rescaled_loss,
        "burst, RMSprop": burst,
    },
    "nothing": {
        "as built": lambda one: None,
        "one short task": lambda one: one.learn(1, epochs=2),
        "the same data again": lambda one: one.learn(1, epochs=5),
        "kept by spectral regularization": kept,
        "plain gradient descent": lambda one: one.learn(2, epochs=5),
    },
}


NETWORKS = {
    "ReLU": perceptron,
    "tanh": partial(perceptron, activation=nn.Tanh),
    "LayerNorm": partial(perceptron, norm=True),
    "convolutional": convolutional,
}
TASKS = ("random labels", "pixels", "regression", "random labels")


def optimizer_of(cause: str, network: nn.Module) -> Any:
    if cause == "many tasks":
        return torch.optim.Adam(network.parameters(), lr=5e-3)
    if cause == "plain gradient descent":
        return torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    if cause.endswith("Adagrad"):
        return torch.optim.Adagrad(network.parameters(), lr=1e-2)
    if cause.endswith("RMSprop"):
        return torch.optim.RMSprop(network.parameters(), lr=1e-3, alpha=0.999)
    return torch.optim.Adam(network.parameters(), lr=1e-3, amsgrad=cause.endswith("AMSGrad"))


@dataclass(frozen=True, kw_only=True)
class Situations:
    """Does the plasticity test tell the truth? Sixty situations in which the truth is known."""

    seed: int = 200
    """Of the first situation; each has another."""
    out: Path = Path("results/situations")
    """Folder for the rows."""

    def __call__(self) -> None:
        use_threads()
        rows = []
        cases = [(truth, cause, build) for truth, causes in SITUATIONS.items() for cause, build in causes.items()]
        seeds = itertools.count(self.seed)
        for (truth, cause, build), (number, name) in track(list(itertools.product(cases, enumerate(NETWORKS)))):
            if cause == "many tasks":  # known to ruin this network
                number, name = 0, "ReLU"
            seed, task = next(seeds), Task(TASKS[number])
            torch.manual_seed(seed)
            make = partial(NETWORKS[name], 64, task.outputs)
            one = Situation(network := make(), optimizer_of(cause, network), task, seed)
            build(one)
            upcoming = 1000 * seed if cause == "the same data again" else 1000 * seed + 999
            began = time.process_time()
            result = supple.plasticity_test(
                network, task.loss, task.batches(upcoming), optimizer=one.optimizer, fresh=make, progress=False
            )
            rows.append(
                {
                    "truth": truth,
                    "cause": cause,
                    "network": name,
                    "task": task.kind,
                    "seed": seed,
                    "verdict": result.verdict,
                    "repeats": len(next(iter(result.curves.values()))),
                    "seconds": time.process_time() - began,
                    "sentence": result.sentence(),
                }
            )
            if result.verdict != truth:
                print(f"{truth}, {cause}, {name}, {task.kind}: {result.sentence()}")
        self.out.mkdir(parents=True, exist_ok=True)
        frame = pl.DataFrame(rows)
        frame.write_parquet(self.out / "verdicts.parquet")
        write_environment(self.out)
        print(frame.group_by("truth", "verdict").len().sort("truth", "verdict"))


if __name__ == "__main__":
    tyro.cli(Situations, description=__doc__)()
