"""The cost of the diagnostics at a task's end: one measurement of all of them against the training of a whole task.

python benchmarks/diagnostics.py --network mlp          # some seconds
python benchmarks/diagnostics.py --network resnet18     # a minute
"""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from measuring import use_threads, write
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu

from supple.diagnostics import DIAGNOSTICS, Inspection


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of the diagnostics at a task's end."""

    network: Literal["mlp", "resnet18"] = "mlp"
    """The 4x256 MLP on 784 inputs (a task is 1,000 steps, batch 512), or ResNet-18 on 3x32x32 images (4,000 steps,
    batch 250), with ImageNet's stem, or with a 3x3 convolution as stem, which keeps the resolution."""
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
        make, _, batch, steps = NETWORKS[self.network]
        shortest = {name: min(values) for name, values in times.items()}
        task = steps * shortest["step"]
        print(f"{self.network}, {sum(p.numel() for p in make().parameters()):,} parameters, probe of {self.probe}")
        for name, value in shortest.items():
            print(f"{name:30} {value:9.4f} s  {100 * value / task:8.4f} % of a task of {steps} steps of {batch}")
        write(self.out, self, seconds=times)


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        shortcut = [nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)]
        self.shortcut = nn.Sequential(*(shortcut if inputs != outputs else []))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm2(self.conv2(relu(self.norm1(self.conv1(x)))))
        return relu(h + self.shortcut(x))


def resnet18() -> nn.Sequential:
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.MaxPool2d(3, 2, 1), nn.BatchNorm2d(64), nn.ReLU()]
    blocks = [
        block
        for inputs, outputs, stride in [(64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)]
        for block in (Block(inputs, outputs, stride), Block(outputs, outputs, 1))
    ]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)]
    return nn.Sequential(*stem, *blocks, *head)


def mlp() -> nn.Sequential:
    widths = [784, 256, 256, 256, 256]
    layers = [layer for sizes in itertools.pairwise(widths) for layer in (nn.Linear(*sizes), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(256, 10))


NETWORKS: dict[str, tuple[Callable[[], nn.Sequential], tuple[int, ...], int, int]] = {
    "mlp": (mlp, (784,), 512, 1000),
    "resnet18": (resnet18, (3, 32, 32), 250, 4000),
}
"""For each network: its constructor, the shape of its inputs, examples per step and steps per task."""


def seconds(work: Callable[[], object]) -> float:
    """Processor time of the work, summed over threads, without other processes of the machine."""
    start = time.process_time()
    work()
    return time.process_time() - start


def measured(config: Cost) -> dict[str, list[float]]:
    """The seconds of a training step, of each diagnostic and of all of them, in every round."""
    make, shape, batch, _ = NETWORKS[config.network]
    torch.manual_seed(0)
    network = make()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    x, y = torch.randn(batch, *shape), torch.randint(10, (batch,))
    probe = torch.randn(config.probe, *shape), torch.randint(10, (config.probe,))
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
