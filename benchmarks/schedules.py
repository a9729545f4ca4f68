"""The decoupled spectral form together with AdamW's weight decay, warm-up and cosine schedule, in plain PyTorch.

    python benchmarks/schedules.py       # three hours on one core; rows to results/digits/schedules.json

A stopped run resumes after its last finished setting.

The decoupled form multiplies its pull by the optimizer's current step size. Does a strength of 1 still fit if a
schedule makes that step size small? The problem is random-label-digits, with the laboratory's networks, labels and
batches. Accuracy under a schedule depends on both the step sizes and the network. So one more task follows at the
constant peak step size: it shows how well each network can still learn.
"""

import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
import tyro
from measuring import settings, use_threads, write
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.nn.functional import cross_entropy

import supple
from supple.lab import datasets, models
from supple.lab.shifts import batch_order, random_labels

TASK_STEPS = 280  # 40 epochs of 7 batches
METHODS: dict[str, dict[str, float]] = {
    "none": {},
    "decoupled, 1": {"strength": 1.0, "decoupled": True},
    "decoupled, 2": {"strength": 2.0, "decoupled": True},  # the mean of a cosine is half its peak
    "coupled, 1e-3": {"strength": 1e-3},
}
VARIANTS = {  # weight decay, and the schedule
    "Adam": (0.0, "constant"),
    "AdamW 0.01": (0.01, "constant"),
    "AdamW 0.1": (0.1, "constant"),
    "Adam, cosine each task": (0.0, "cosine each task"),
    "Adam, one cosine": (0.0, "one cosine"),
    "AdamW 0.01, cosine each task": (0.01, "cosine each task"),
}
SETTINGS = [
    (variant, method)
    for variant, (_, schedule) in VARIANTS.items()
    for method in METHODS
    if method in ("none", "decoupled, 1") or (method == "coupled, 1e-3") == (schedule == "constant")
]
"""The larger strength is used only with schedules, the paper's form only with constant step sizes."""


@dataclass(frozen=True, kw_only=True)
class Schedules:
    """The decoupled spectral form together with AdamW's weight decay, warm-up and cosine schedule."""

    seeds: int = 3
    """Number of seeds, from 0, at least two; they determine networks, labels and batches."""
    tasks: int = 30
    """Tasks under the schedule."""
    out: Path = Path("results/digits/schedules.json")
    """The file for the accuracies at the ends of tasks."""

    def __call__(self) -> None:
        use_threads(1)
        began, rows = time.monotonic(), []
        if self.out.exists():
            before = json.loads(self.out.read_text())
            if before["config"] != settings(self):
                sys.exit(f"expected {before['config']} as in {self.out}, got {settings(self)}: take another --out")
            rows, began = before["rows"], began - before["seconds"]
        table = Table("optimizer", "method", "last 5 tasks", "one more, constant", "spectral norm")
        for variant, method in track(SETTINGS, "training"):
            of_setting = [row for row in rows if (row["variant"], row["method"]) == (variant, method)]
            runs = [[row for row in of_setting if row["seed"] == seed] for seed in range(self.seeds)]
            if not all(runs):
                runs = [train(variant, method, seed, self.tasks) for seed in range(self.seeds)]
                rows += [row for run in runs for row in run]
                write(self.out, self, seconds=round(time.monotonic() - began), rows=rows)
            last = [fmean(row["accuracy"] for row in run[-6:-1]) for run in runs]
            more, norms = [run[-1]["accuracy"] for run in runs], [run[-2]["spectral_norm"] for run in runs]
            table.add_row(variant, method, shown(last), shown(more), shown(norms))
        Console().print(table)


def share(schedule: str, step: int, steps: int) -> float:
    """The step size as a share of its peak. A cosine schedule warms up for a tenth of its steps and ends at 0."""
    if schedule == "constant" or step >= steps:
        return 1.0
    if schedule == "cosine each task":
        step, steps = step % TASK_STEPS, TASK_STEPS
    warm_up = steps // 10
    cosine = (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up))) / 2
    return (step + 1) / warm_up if step < warm_up else cosine


def train(variant: str, method: str, seed: int, tasks: int) -> list[dict[str, Any]]:
    """Train one network on all tasks; return its accuracy and mean spectral norm at each task's end."""
    data = datasets.load("digits")
    x = data.normalized(data.train.images)
    torch.manual_seed(seed)
    network = models.find("mlp")(data)
    weight_decay, schedule = VARIANTS[variant]
    # Without weight decay AdamW is Adam.
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=weight_decay, fused=True)
    if options := METHODS[method]:
        supple.SpectralRegularizer(network, **options).attach(optimizer)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: share(schedule, step, tasks * TASK_STEPS))
    rows = []
    for task in range(tasks + 1):
        y = random_labels(data, seed, task).labels
        for batch in batch_order(len(x), 256, 40, seed, task):
            loss = cross_entropy(network(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()  # the regularizer acts here, with this step's step size
            scheduler.step()
        with torch.no_grad():
            accuracy = (network(x).argmax(1) == y).double().mean().item()
            norms = [torch.linalg.matrix_norm(weight, 2).item() for weight in network.parameters() if weight.ndim == 2]
        measured = {"task": task, "accuracy": accuracy, "spectral_norm": fmean(norms)}
        rows.append({"variant": variant, "method": method, "seed": seed, **measured})
    return rows


def shown(values: list[float]) -> str:
    """Mean and standard error over seeds."""
    return f"{fmean(values):.3f} ± {stdev(values) / math.sqrt(len(values)):.3f}"


if __name__ == "__main__":
    tyro.cli(Schedules)()
