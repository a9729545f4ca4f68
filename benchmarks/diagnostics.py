"""The cost of the diagnostics at a task's end: one measurement of all of them against the training of a whole task.

python benchmarks/diagnostics.py --network mlp          # some seconds
python benchmarks/diagnostics.py --network resnet18     # a minute
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from measuring import use_threads, write
from networks import NETWORKS
from torch.nn.functional import cross_entropy

from supple.diagnostics import DIAGNOSTICS, Inspection


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of the diagnostics at a task's end."""

    network: Literal["mlp", "resnet18"] = "mlp"
    """The laboratory's 4x256 MLP on 784 inputs (a task is 1,000 steps, batch 512), or its ResNet-18 on 3x32x32 images
    (4,000 steps, batch 250)."""
    probe: int = 256
    """Examples on which the diagnostics are computed."""
    rounds: int = 5
    """How often everything is timed; the minimum time is used."""
    threads: int = 1
    """Threads of torch."""
    out: Path | None = None
    """A JSON file for the times."""

    def __call__(self) -> None:
        use_threads(self.threads)
        times = measured(self)
        shortest = {name: min(values) for name, values in times.items()}
        steps = STEPS[self.network]
        task = steps * shortest["step"]
        print(f"{self.network}, probe of {self.probe}")
        for name, value in shortest.items():
            print(f"{name:30} {value:9.4f} s  {100 * value / task:8.4f} % of a task of {steps} steps")
        write(self.out, self, seconds=times)


STEPS = {"mlp": 1000, "resnet18": 4000}
"""Steps in a task."""


def seconds(work: Callable[[], object]) -> float:
    """Processor time of the work, summed over threads, without other processes of the machine."""
    start = time.process_time()
    work()
    return time.process_time() - start


def measured(config: Cost) -> dict[str, list[float]]:
    """The seconds of a training step, of each diagnostic and of all of them, in every round."""
    make, draw = NETWORKS[config.network]
    torch.manual_seed(0)
    network = make()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    (x, y), probe = draw(), tuple(part[: config.probe] for part in draw())
    initial = {name: vector.clone() for name, vector in Inspection(network).parameters.items()}
    previous = Inspection(network, *probe).activations

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(network(x), y).backward()
        optimizer.step()

    step()
    times: dict[str, list[float]] = {"step": [], "measurement": [], **{name: [] for name in DIAGNOSTICS}}
    for _ in range(config.rounds):
        times["step"].append(min(seconds(step) for _ in range(20 if config.network == "mlp" else 1)))
        inspection = Inspection(network, *probe, initial=initial, previous=previous)
        for name, diagnostic in DIAGNOSTICS.items():  # shared work counts for the first that needs it
            times[name].append(seconds(lambda look=diagnostic, at=inspection: look(at)))
        times["measurement"].append(sum(times[name][-1] for name in DIAGNOSTICS))
    return times


if __name__ == "__main__":
    tyro.cli(Cost)()
