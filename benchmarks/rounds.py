"""A network that is trained again and again on new data: what keeps it trainable, and what cures one that is worn?

    python benchmarks/rounds.py     # minutes on one core; rows to results/rounds, the table into docs/fine-tuning.md

In each round the digits' pixels come in a new order and their classes get new names, and a perceptron is trained on
1,300 images for three epochs. After some rounds without a method (3: a healthy network, 60: a worn one) copies of the
network and its Adam go on with one treatment each. The measure is accuracy on 347 other images at a round's end.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import torch
import tyro
from measuring import put_into, use_threads, with_error, write_environment
from rich.progress import track
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import Adam

import supple
from supple.lab.datasets import Dataset, Examples, divided_digits
from supple.mitigators.forecast import RewriteWarning
from supple.runs.stats import MEAN_AND_ERROR

BEFORE = {"healthy": 3, "worn": 60}
"""Rounds without a method, which make the network that the treatments begin with."""
ROUNDS = 40
"""Rounds with each treatment."""
LAST = 10
"""Rounds at the end over which accuracy is averaged."""
EPOCHS, BATCH_SIZE, STEP_SIZE = 3, 32, 5e-3


def make_network() -> nn.Sequential:
    hidden = [layer for _ in range(4) for layer in (nn.Linear(64, 64), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(64, 10))


def new_adam(network: nn.Module) -> Adam:
    return Adam(network.parameters(), lr=STEP_SIZE)


Treatment = Callable[[nn.Module, Adam], Adam]
"""What happens at the beginning of a round to a network and its optimizer; returns the optimizer to go on with."""


def nothing(network: nn.Module, optimizer: Adam) -> Adam:
    return optimizer


def to_one(network: nn.Module, optimizer: Adam) -> Adam:
    supple.SpectralRegularizer(network, decoupled=True).attach(optimizer)
    return optimizer


def ceilings(network: nn.Module, optimizer: Adam) -> Adam:
    supple.SpectralRegularizer(network, target="initial", decoupled=True).attach(optimizer)
    return optimizer


def shrunk(network: nn.Module, optimizer: Adam) -> Adam:
    supple.ShrinkAndPerturb(network, 0.5, variant="task").start_task()
    return optimizer


def fresh(network: nn.Module, optimizer: Adam) -> Adam:
    network.load_state_dict(make_network().state_dict())
    return new_adam(network)


def rebuilt(network: nn.Module, optimizer: Adam) -> Adam:
    return ceilings(network, new_adam(network))


def restarted(network: nn.Module, optimizer: Adam) -> Adam:
    return new_adam(network)


TREATMENTS: dict[str, tuple[Treatment, Treatment]] = {
    "nothing": (nothing, nothing),
    "target 1": (to_one, nothing),
    '`"initial"`': (ceilings, nothing),
    '`"initial"`, built again with a new Adam in each round': (rebuilt, rebuilt),
    "a new Adam in each round": (restarted, restarted),
    "shrink and perturb once": (shrunk, nothing),
    'shrink and perturb once, then `"initial"`': (
        lambda network, optimizer: ceilings(network, shrunk(network, optimizer)),
        nothing,
    ),
    "start again in each round": (fresh, fresh),
}
"""What happens at the beginning of the first round, and of each later one."""


def learned(network: nn.Module, optimizer: Adam, data: Dataset, seed: int, number: int) -> float:
    """Train on a round; the accuracy on the held-out images."""
    random = torch.Generator().manual_seed(1_000_000 * seed + number)
    pixels, names = torch.randperm(64, generator=random), torch.randperm(10, generator=random)

    def seen(part: Examples) -> tuple[torch.Tensor, torch.Tensor]:
        return data.normalized(part.images).flatten(1)[:, pixels], names[part.labels]

    x, y = seen(data.train)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x), generator=random).split(BATCH_SIZE):
            optimizer.zero_grad()
            cross_entropy(network(x[batch]), y[batch]).backward()
            optimizer.step()
    assert data.test is not None
    x, y = seen(data.test)
    with torch.no_grad():
        return (network(x).argmax(1) == y).float().mean().item()


def rows_of(seed: int, data: Dataset) -> Iterator[tuple[int, str, str, int, float]]:
    torch.manual_seed(seed)
    network = make_network()
    optimizer = new_adam(network)
    number = 0
    for start, before in BEFORE.items():
        while number < before:
            learned(network, optimizer, data, seed, number)
            number += 1
        for treatment, (first, later) in TREATMENTS.items():
            copied, its_optimizer = copy.deepcopy((network, optimizer))
            torch.manual_seed(seed)
            for round_ in range(ROUNDS):
                act = later if round_ else first
                its_optimizer = act(copied, its_optimizer)
                yield seed, start, treatment, round_, learned(copied, its_optimizer, data, seed, number + round_)


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """Train round after round with each treatment, and write the rows and the table."""

    seeds: int = 3
    """Number of seeds, from 0."""
    out: Path = Path("results/rounds")
    """Folder for the rows."""
    page: Path = Path("docs/fine-tuning.md")
    """The page with the table."""

    def __call__(self) -> None:
        use_threads()
        warnings.simplefilter("ignore", RewriteWarning)  # to rewrite a worn network is what is tried here
        data = divided_digits()
        records = [row for seed in track(range(self.seeds), "seeds") for row in rows_of(seed, data)]
        rows = pl.DataFrame(records, ["seed", "start", "treatment", "round", "value"], orient="row")
        self.out.mkdir(parents=True, exist_ok=True)
        rows.write_parquet(self.out / "rows.parquet")
        write_environment(self.out)
        put_into(self.page, "rounds", table(rows))


def table(rows: pl.DataFrame) -> Iterator[str]:
    """The lines of the page's table: accuracy in the first and in the last rounds, from each start."""
    yield "| | healthy: first 10 rounds | last 10 | worn: first 10 rounds | last 10 |"
    yield "|---|---|---|---|---|"
    of_seeds = ("treatment", "start", "seed")
    spans = {"first": pl.col("round") < LAST, "last": pl.col("round") >= ROUNDS - LAST}
    cells = {
        span: rows.filter(which)
        .group_by(of_seeds, maintain_order=True)
        .agg(pl.col("value").mean())
        .group_by("treatment", "start", maintain_order=True)
        .agg(**MEAN_AND_ERROR)
        for span, which in spans.items()
    }
    for treatment in TREATMENTS:
        found = [
            cells[span].row(by_predicate=(pl.col("treatment") == treatment) & (pl.col("start") == start), named=True)
            for start in BEFORE
            for span in spans
        ]
        yield f"| {treatment} | " + " | ".join(with_error(cell["mean"], cell["error"]) for cell in found) + " |"


if __name__ == "__main__":
    tyro.cli(Rounds)()
