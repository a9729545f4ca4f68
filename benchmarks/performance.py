"""The speed of supple, compared with baselines that take turns with it in one run, and with the machine's limits.

    python benchmarks/performance.py                          # everything; half an hour on an idle machine
    python benchmarks/performance.py --only alone population

This writes benchmarks/results/<machine>.json and, from it and from results/overhead, docs/performance.md.
"""

import itertools
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from measuring import arithmetic, bandwidth, ratios, repeated, take_turns, use_threads
from performance_page import page
from rich.console import Console
from torch import nn
from torch.nn.functional import cross_entropy

import supple
from supple.lab import datasets, models
from supple.lab.operations import operations
from supple.lab.run import Run
from supple.lab.trainer import Trainer
from supple.lab.trimmed import TrimmedConv2d
from supple.runs.folder import hardware_and_versions
from supple.training.precision import matmul_precision

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, kw_only=True)
class Performance:
    """The speed of supple, compared with baselines that take turns with it in one run."""

    only: tuple[Literal["alone", "population", "stacking", "big", "resnet", "precision", "start", "memory"], ...] = ()
    """Benchmarks to repeat; all when left out."""
    rounds: int = 15
    """How often each variant is timed; the variants take turns."""
    results: Path = RESULTS
    """Folder for one file per machine; a benchmark that is not repeated keeps its numbers there."""
    out: Path = Path("docs/performance.md")
    """The page, written once every benchmark has numbers."""

    def __call__(self) -> None:
        use_threads(1)
        console = Console()
        machine = f"{platform.machine()}-{torch.backends.cpu.get_cpu_capability()}"
        path = self.results / f"{machine.lower()}.json"
        measured: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        measured["machine"] = {"bandwidth": bandwidth(self.rounds), "multiply-adds": arithmetic(self.rounds)}
        for name in self.only or BENCHMARKS:
            console.print(name)
            measured[name] = BENCHMARKS[name](self.rounds)
            measured.setdefault("environments", {})[name] = hardware_and_versions()
            console.print(measured[name])
            self.results.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(measured, indent=1))
        if measured.keys() >= BENCHMARKS.keys():
            self.out.write_text(page(measured))


def gain(seconds: dict[str, list[float]], base: str, of: str) -> dict[str, float]:
    """How many times faster ``of`` is than ``base``: median and quartiles."""
    low, middle, high = statistics.quantiles(ratios(seconds[base], seconds[of]), n=4)
    return {"ratio": middle, "low": low, "high": high}


def regularizer_alone(rounds: int) -> list[dict[str, Any]]:
    """The regularizer's step alone: the share of the machine's bandwidth that it reaches for the bytes it must move."""
    rows = []
    for name, network in (
        ("4x256 MLP", nn.Sequential(*(nn.Linear(784 if not layer else 256, 256) for layer in range(4)))),
        ("8 layers of 2048", nn.Sequential(*(nn.Linear(2048, 2048) for _ in range(8)))),
    ):
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        regularizer = supple.SpectralRegularizer(network)
        seconds = statistics.median(take_turns({"step": repeated(5, regularizer.before_step)}, rounds)["step"]) / 5
        moved = 4 * sum(parameter.nbytes for parameter in network.parameters() if parameter.ndim > 1)
        rows.append({"what": name, "share": moved / seconds / bandwidth(5), "bytes": moved})
    return rows


def eager_steps(method: str) -> Callable[[], None]:
    """A plain training loop: 784-100-100-10, batch 16, SGD."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    first = [parameter.detach().clone() for parameter in network.parameters()]
    x, y = torch.rand(10_000, 784), torch.randint(10, (10_000,))
    order = torch.randperm(10_000).split(16)
    if method == "spectral":
        supple.SpectralRegularizer(network, strength=1e-3).attach(optimizer)

    def learn() -> None:
        for batch in order[:100]:
            loss = cross_entropy(network(x[batch]), y[batch])
            if method == "l2-init":
                pairs = zip(network.parameters(), first, strict=True)
                loss = loss + 1e-3 * sum(((a - b) ** 2).sum() for a, b in pairs)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return learn


def steps_of(run: Run, count: int, compiled: bool | None = None) -> Callable[[], None]:
    """So many steps of a run at each call, including their batches and pixel permutation; the next call goes on."""
    trainer = Trainer(run, compiled=compiled)
    steps = itertools.chain.from_iterable(trainer.steps(task) for task in range(run.tasks))

    def learn() -> None:
        with matmul_precision(run.matmul_precision):
            for _ in range(count):
                next(steps)

    return learn


def population(rounds: int) -> list[dict[str, Any]]:
    """Ten members together on permuted MNIST (Kumar et al.), against a plain loop for one after the other."""
    rows = []
    for method in ("none", "l2-init", "spectral"):
        run = Run.of("permuted-mnist-kumar", method, range(10), scale="paper", diagnostics=())
        start = time.perf_counter()
        ours = steps_of(run, 100, compiled=True)
        ours()
        compiling = time.perf_counter() - start
        seconds = take_turns({"eager": eager_steps(method), "population": ours}, rounds)
        seconds["population"] = [value / 10 for value in seconds["population"]]  # for each member
        rate = 100 / statistics.median(seconds["population"])
        rows.append(
            {
                "what": method,
                **gain(seconds, "eager", "population"),
                "member steps a second": rate,
                "compiling": compiling,
            }
        )
    return rows


def stacking(rounds: int) -> list[dict[str, Any]]:
    """Ten members together against one at a time, both compiled, for several batch sizes."""
    rows = []
    for batch_size in (16, 64, 128, 512):
        alone, ten = (
            Run.of("permuted-mnist-kumar", "spectral", seeds, scale="paper", batch_size=batch_size, diagnostics=())
            for seeds in (range(1), range(10))
        )
        variants = {"alone": steps_of(alone, 10, compiled=True), "together": steps_of(ten, 10, compiled=True)}
        seconds = take_turns(variants, rounds)
        seconds["together"] = [value / 10 for value in seconds["together"]]
        rows.append({"what": batch_size, "operations": operations(ten), **gain(seconds, "alone", "together")})
    return rows


def big_steps(rounds: int) -> list[dict[str, Any]]:
    """Steps of the 4x256 MLP at batch 512 in the laboratory, in full and lower precision, against a plain loop."""
    data = datasets.load("mnist")
    torch.manual_seed(0)
    network = models.find("mlp")(data)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    x, y = data.normalized(data.train.images), data.train.labels

    def learn() -> None:
        for batch in torch.arange(2560).split(512):
            loss = cross_entropy(network(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    run = Run.of("random-label-mnist", "none", [0], scale="paper", diagnostics=())
    ours = {precision: steps_of(replace(run, matmul_precision=precision), 5) for precision in ("highest", "medium")}
    seconds = take_turns({"plain": learn, **ours}, rounds)
    return [{"what": precision, **gain(seconds, "plain", precision)} for precision in ours]


def resnet(rounds: int) -> list[dict[str, Any]]:
    """Steps of ResNet-18 on CIFAR-10, batch 250, against a plain loop with a DataLoader."""
    from torch.utils.data import DataLoader, TensorDataset

    data = datasets.load("cifar10").thinned(2500)
    torch.manual_seed(0)
    network = models.find("resnet18")(data)
    for layer in network.modules():
        if isinstance(layer, TrimmedConv2d):
            layer.__class__ = nn.Conv2d  # the plain loop uses the ordinary layer
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    loader = DataLoader(TensorDataset(data.train.images, data.train.labels), batch_size=250, shuffle=True)

    def learn() -> None:
        for _, (images, labels) in zip(range(2), loader, strict=False):
            loss = cross_entropy(network(data.normalized(images)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    run = Run.of("random-label-cifar10", "none", [0], examples=2500, batch_size=250, diagnostics=())
    seconds = take_turns({"plain": learn, "ours": steps_of(run, 2)}, max(3, rounds // 4))
    return [{"what": "none", **gain(seconds, "plain", "ours")}]


def precision(rounds: int) -> list[dict[str, Any]]:
    """Steps of ResNet-18 on CIFAR-10, batch 250: ``--autocast bfloat16`` against float32."""
    run = Run.of("random-label-cifar10", "none", [0], examples=2500, batch_size=250, diagnostics=())
    variants = {"float32": steps_of(run, 1), "bfloat16": steps_of(replace(run, autocast="bfloat16"), 1)}
    row = {"what": "bfloat16", **gain(take_turns(variants, rounds), "float32", "bfloat16")}
    return [
        row | {"has bfloat16 units": any(torch.cpu.get_capabilities()[unit] for unit in ("avx512_bf16", "amx_bf16"))}
    ]


COMMAND = """
import os, sys
import supple.runs.sweep as sweep
from supple.cli import main
sweep.work_through = lambda *jobs, **rest: os._exit(0)
sys.argv = ["supple", "run", "random-label-digits", "--out", sys.argv[1]]
main()
"""
WORKER = """
from supple.lab.run import Run
from supple.lab.trainer import Trainer
next(Trainer(Run.of("random-label-digits", "spectral", [0])).steps(0))
"""


def start(rounds: int) -> list[dict[str, Any]]:
    """Time from ``supple run`` to the first step: the command until it starts workers, then a worker with its step."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(5):
            began = time.perf_counter()
            for program in (COMMAND, WORKER):
                subprocess.run([sys.executable, "-c", program, folder], check=True, capture_output=True)
            seconds.append(time.perf_counter() - began)
    return [{"what": "digits", "seconds": statistics.median(seconds), "fastest": min(seconds)}]


PROCESS = """
import json
import torch
from supple.lab import datasets
from supple.lab.run import Run
from supple.lab.trainer import Trainer
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096
torch.set_num_threads(1)
torch.zeros(512, 512) @ torch.zeros(512, 512)  # what the library of products sets aside for itself
before = resident()
run = Run.of("permuted-mnist-kumar", "spectral", [0], scale="paper", model="mlp-3x2000", diagnostics=())
trainer = Trainer(run, compiled=False)
steps = trainer.steps(0)  # holds the task until the end
for _ in range(50):
    next(steps)
mapped = datasets.load(run.dataset)  # the whole file, from which the training examples are copied
parts = [part for part in (trainer.data.train, mapped.train, mapped.validation, mapped.test) if part]
state = [trainer.learner.parameters, *trainer.learner.moments.values(), *trainer.learner.mitigator.state.values()]
print(json.dumps({
    "used": resident() - before,
    "parameters": sum(tensor.nbytes for tensor in trainer.learner.parameters.values()),
    "state": sum(tensor.nbytes for part in state[1:] for tensor in part.values()),
    "data": sum(part.images.nbytes + part.labels.nbytes for part in parts),
}))
"""


def memory(rounds: int) -> list[dict[str, Any]]:
    """A sweep worker's memory beyond its programs: parameters, gradients, state, and data."""
    printed = subprocess.run([sys.executable, "-c", PROCESS], check=True, capture_output=True, text=True).stdout
    sizes = json.loads(printed)
    sizes["sum"] = 2 * sizes["parameters"] + sizes["state"] + sizes["data"]
    return [{"what": "784-2000-2000-2000-10, spectral, batch 16", "ratio": sizes["used"] / sizes["sum"], **sizes}]


BENCHMARKS: dict[str, Callable[[int], list[dict[str, Any]]]] = {
    "alone": regularizer_alone,
    "population": population,
    "stacking": stacking,
    "big": big_steps,
    "resnet": resnet,
    "precision": precision,
    "start": start,
    "memory": memory,
}


if __name__ == "__main__":
    tyro.cli(Performance)()
