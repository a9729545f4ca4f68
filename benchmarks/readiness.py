"""Does "optimization readiness" foretell the next task? Short runs on digits with random labels that measure it.

    python benchmarks/readiness.py       # minutes on one core; rows to results/early-warning/readiness.parquet

Readiness needs the gradients of single examples of the next task, which the rows of other runs do not have. With the
loss J, its gradient g and the gradient of a mini-batch g_B it is

    strength × reliability,    strength = ‖g‖² / J,    reliability = ‖g‖² / E ‖g_B‖²

(Wang et al., *Predicting Plasticity in Deep Continual Learning*, arXiv 2605.09044). The paper's text could not be had
here, only its abstract and a public transcription of its equations. The paper estimates E ‖g_B‖² from 128
mini-batches of 4. Here it follows from the mean squared norm of the gradients of as many single examples.
"""

from dataclasses import dataclass
from itertools import product
from pathlib import Path

import polars as pl
import torch
import tyro
from digits import PROBLEM, chosen, run_of
from measuring import use_threads
from rich.progress import track
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from supple.lab.run import Run
from supple.lab.trainer import Trainer

BATCH, BATCHES = 4, 128
"""The paper's mini-batches."""
ROWS = {"task": pl.Int64, "metric": pl.String, "value": pl.Float64}


@dataclass(frozen=True, kw_only=True)
class Readiness:
    """Optimization readiness for the next task, at the end of each task."""

    methods: tuple[str, ...] = ("none", "l2-init", "spectral", "decoupled-spectral")
    """Methods to train: one that keeps learning here, and three that do not."""
    seeds: int = 2
    """Number of seeds, from 0."""
    tasks: int = 16
    """Tasks of each run; the methods that lose plasticity here lose it within ten."""
    tuning: Path = Path("results/digits/tuning.parquet")
    """The results that determine each method's strength."""
    out: Path = Path("results/early-warning/readiness.parquet")
    """The file for the rows."""

    def __call__(self) -> None:
        use_threads(1)
        best = chosen(pl.read_parquet(self.tuning))
        self.out.parent.mkdir(parents=True, exist_ok=True)
        frames = []
        for seed, method in track(list(product(range(self.seeds), self.methods)), "training"):
            frames.append(rows_of(run_of(method, seed, best.get(method), tasks=self.tasks)))
            pl.concat(frames).write_parquet(self.out)


def rows_of(run: Run) -> pl.DataFrame:
    """The measurements of one network; those of task -1 are made before training."""
    trainer = Trainer(run, compiled=False)
    frames = [measured(trainer, -1)]
    for task in range(run.tasks):
        learned = trainer.learn(task).select(pl.lit(task).alias("task"), "metric", "value").cast(ROWS)
        frames += [learned, measured(trainer, task)]
    settings = {"problem": PROBLEM, "method": run.method, "seed": run.seeds[0], "strength": run.strengths[0]}
    return pl.concat(frames).with_columns(**{name: pl.lit(value) for name, value in settings.items()})


def measured(trainer: Trainer, task: int) -> pl.DataFrame:
    """The readiness of the trainer's network for the task after ``task``."""
    following = trainer.shift.task(trainer.data, trainer.run.seeds[0], task + 1)
    chosen_images, labels = following.training_examples(trainer.data)
    x = trainer.data.normalized(trainer.data.train.images[chosen_images])
    values = readiness(trainer.learner.members[0], x, labels[chosen_images])
    if task < 0:
        values |= {name: value.item() for name, value in trainer.probe.measure().items()}
    return pl.DataFrame([(task, *row) for row in values.items()], schema=ROWS, orient="row")


def readiness(network: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """Optimization readiness of a network for a task, and its two factors."""
    parameters = {name: parameter.detach() for name, parameter in network.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(functional_call(network, parameters, (x,)), y)

    def squared_norm(x: Tensor, y: Tensor) -> Tensor:
        return sum_of_squares(grad(loss)(parameters, x[None], y[None]))

    of_task = sum_of_squares(grad(loss)(parameters, x, y)).item()
    sample = torch.arange(BATCH * BATCHES) * len(x) // (BATCH * BATCHES)
    of_example = vmap(squared_norm, chunk_size=64)(x[sample], y[sample]).mean().item()
    of_batch = of_example / BATCH + of_task * (1 - 1 / BATCH)  # E ‖g_B‖² of independent examples
    strength, reliability = of_task / loss(parameters, x, y).item(), of_task / of_batch
    return {
        "readiness": strength * reliability,
        "gradient_strength": strength,
        "gradient_reliability": reliability,
    }


def sum_of_squares(gradients: dict[str, Tensor]) -> Tensor:
    return torch.stack([gradient.square().sum() for gradient in gradients.values()]).sum()


if __name__ == "__main__":
    tyro.cli(Readiness)()
