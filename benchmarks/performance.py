"""The speed of supple, compared with baselines that take turns with it in one run, and with the machine's limits.

    python benchmarks/performance.py                  # everything this machine allows; needs half an idle hour
    python benchmarks/performance.py --only bandwidth population

This writes benchmarks/results/<machine>.json, and the tables of docs/performance.md from all such files.
"""

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
from typing import Any

import torch
import tyro
from rich.console import Console
from torch import nn
from torch.nn.functional import cross_entropy

import supple
from supple.lab import datasets, models
from supple.lab.grid import SMALL_STEP
from supple.lab.operations import operations
from supple.lab.run import Run
from supple.lab.trainer import Trainer, matmul_precision
from supple.lab.trimmed import TrimmedConv2d

RESULTS = Path(__file__).parent / "results"
console = Console()


@dataclass(frozen=True, kw_only=True)
class Performance:
    """The speed of supple, compared with baselines that take turns with it in one run."""

    only: tuple[str, ...] = ()
    """Names of benchmarks; all when left out."""
    rounds: int = 15
    """How often each variant is timed; the variants take turns."""


def paired(variants: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """This thread's processor seconds for every call; the variants take turns, and the first round warms up."""
    names, seconds = list(variants), {name: list[float]() for name in variants}
    for turn in range(-1, rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.thread_time()
            variants[name]()
            if turn >= 0:
                seconds[name].append(time.thread_time() - start)
    return seconds


def ratios(seconds: dict[str, list[float]], base: str, of: str) -> dict[str, float]:
    """How many times faster ``of`` is than ``base``: median and quartiles."""
    found = [slow / fast for slow, fast in zip(seconds[base], seconds[of], strict=True)]
    low, middle, high = statistics.quantiles(found, n=4)
    return {"ratio": middle, "low": low, "high": high}


def times(count: int, step: Callable[[], object]) -> Callable[[], None]:
    def repeated() -> None:
        for _ in range(count):
            step()

    return repeated


# The limits of the machine.


def bandwidth(rounds: int) -> float:
    """Bytes per second read and written in adding two tensors much larger than the caches."""
    a, b = torch.zeros(64 * 2**20), torch.ones(64 * 2**20)
    seconds = paired({"add": lambda: a.add_(b)}, rounds)["add"]
    return 3 * a.nbytes / min(seconds)


def arithmetic(rounds: int) -> float:
    """Multiply-adds per second in a large matrix product."""
    a = torch.randn(1024, 1024)
    return 1024**3 / min(paired({"product": lambda: a @ a}, rounds)["product"])


# The benchmarks.


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
        seconds = statistics.median(paired({"step": times(5, regularizer.before_step)}, rounds)["step"]) / 5
        moved = 4 * sum(parameter.nbytes for parameter in network.parameters() if parameter.ndim > 1)
        rows.append({"what": name, "share": moved / seconds / bandwidth(5), "bytes": moved})
    return rows


def _eager(method: str) -> Callable[[], None]:
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


def _stepping(run: Run, steps: int, compiled: bool | None = None) -> Callable[[], None]:
    """The first steps of a run's first task, including its batches and pixel permutation."""
    trainer = Trainer(run, compiled=compiled)
    tasks = [trainer.shift.task(trainer.data, seed, 0) for seed in run.seeds]
    labels, batches = trainer._batches(tasks, 0)
    pixels = torch.stack([task.pixels for task in tasks]) if tasks[0].pixels is not None else None

    def learn() -> None:
        with matmul_precision(run.matmul_precision):
            for batch in batches[:steps]:
                trainer._step(trainer._inputs(batch, pixels), labels.gather(1, batch))

    return learn


def population(rounds: int) -> list[dict[str, Any]]:
    """Ten members together on permuted MNIST (Kumar et al.), against a plain loop for one after the other."""
    rows = []
    for method in ("none", "l2-init", "spectral"):
        run = Run.of("permuted-mnist-kumar", method, range(10), scale="paper", diagnostics=())
        start = time.perf_counter()
        ours = _stepping(run, 100, compiled=True)
        ours()
        compiling = time.perf_counter() - start
        seconds = paired({"eager": _eager(method), "population": ours}, rounds)
        seconds["population"] = [each / 10 for each in seconds["population"]]  # for each member
        rate = 100 / statistics.median(seconds["population"])
        rows.append(
            {
                "what": method,
                **ratios(seconds, "eager", "population"),
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
        variants = {"alone": _stepping(alone, 10, compiled=True), "together": _stepping(ten, 10, compiled=True)}
        seconds = paired(variants, rounds)
        seconds["together"] = [each / 10 for each in seconds["together"]]
        rows.append({"what": batch_size, "operations": operations(ten), **ratios(seconds, "alone", "together")})
    return rows


def big_steps(rounds: int) -> list[dict[str, Any]]:
    """Steps of the 4x256 MLP at batch 512 in the laboratory, in full and lower precision, against a plain loop."""
    data = datasets.load("mnist")
    torch.manual_seed(0)
    network = models.load("mlp")(data)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    x, y = data.normalized(data.train.images), data.train.labels

    def learn() -> None:
        for batch in torch.arange(2560).split(512):
            loss = cross_entropy(network(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    run = Run.of("random-label-mnist", "none", [0], scale="paper", diagnostics=())
    ours = {each: _stepping(replace(run, matmul_precision=each), 5) for each in ("highest", "medium")}
    seconds = paired({"plain": learn, **ours}, rounds)
    return [{"what": each, **ratios(seconds, "plain", each)} for each in ours]


def resnet(rounds: int) -> list[dict[str, Any]]:
    """Steps of ResNet-18 on CIFAR-10, batch 250, against a plain loop with a DataLoader."""
    from torch.utils.data import DataLoader, TensorDataset

    data = datasets.load("cifar10").thinned(2500)
    torch.manual_seed(0)
    network = models.load("resnet18")(data)
    for layer in network.modules():
        if isinstance(layer, TrimmedConv2d):
            layer.__class__ = nn.Conv2d  # the plain loop uses the ordinary layer
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    loader = DataLoader(TensorDataset(data.train.images, data.train.labels), batch_size=250, shuffle=True)

    def learn() -> None:
        for (images, labels), _ in zip(loader, range(2), strict=False):
            loss = cross_entropy(network(data.normalized(images)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    run = Run.of("random-label-cifar10", "none", [0], examples=2500, batch_size=250, diagnostics=())
    seconds = paired({"plain": learn, "ours": _stepping(run, 2)}, max(3, rounds // 4))
    return [{"what": "none", **ratios(seconds, "plain", "ours")}]


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
trainer = Trainer(Run.of("random-label-digits", "spectral", [0]))
trainer._batches([trainer.shift.task(trainer.data, 0, 0)], 0)
"""


def start(rounds: int) -> list[dict[str, Any]]:
    """Time from ``supple run`` to the first step: the command until it starts workers, then a worker until its step."""
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
task = trainer.shift.task(trainer.data, 0, 0)
labels, batches = trainer._batches([task], 0)
for batch in batches[:50]:
    trainer._step(trainer._inputs(batch, task.pixels[None]), labels.gather(1, batch))
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
    told = subprocess.run([sys.executable, "-c", PROCESS], check=True, capture_output=True, text=True).stdout
    found = json.loads(told)
    found["sum"] = 2 * found["parameters"] + found["state"] + found["data"]
    return [{"what": "784-2000-2000-2000-10, spectral, batch 16", "ratio": found["used"] / found["sum"], **found}]


BENCHMARKS: dict[str, Callable[[int], list[dict[str, Any]]]] = {
    "alone": regularizer_alone,
    "population": population,
    "stacking": stacking,
    "big": big_steps,
    "resnet": resnet,
    "start": start,
    "memory": memory,
}


PAGE = """# Speed

Written by `python benchmarks/performance.py` and `python benchmarks/overhead.py` from their raw results (in
`benchmarks/results` and `results/overhead`). Each number is a ratio between two things that took turns in one run, the
median over rounds with its quartiles; seconds are those of the thread, on one thread, so that other processes on the
machine count as little as possible. The machine is a virtual one with neighbours: where a step is compared with itself
("none again") the quartiles say how far to trust the others. {machine}

## The regularizer's share of a training step

The whole step with it over the same step without; what other ways of doing the same cost, beside it. *Timed within its
steps* is the surest row: the regularizer's own seconds inside of each step, over the rest of that step, so that the
differences between steps do not count.

{overhead}

## The regularizer alone

A step without any training, against what the memory can move: each weight is read twice, each gradient read and written
once.

{alone}

## Many networks at once

Ten members of permuted MNIST as Kumar et al. (2023) have it (784-100-100-10, batch 16, SGD), compiled and vectorised
over the members, for each member against a plain eager loop on one network. Compiling is not counted; it took
{compiling}.

{population}

The same with the method at other batch sizes, a member of ten against one alone, both compiled. A sweep on a CPU trains
members together whose step takes less than {small_step:.0f} million operations.

{stacking}

A step of the 4x256 MLP at batch 512 (Adam), as the laboratory takes it, against a plain loop: {big}; with
`--matmul-precision medium` and this processor's bfloat16 units: {medium}.
ResNet-18 on CIFAR-10 at batch 250 against a plain loop with a DataLoader: {resnet}.

## The start

From typing `supple run random-label-digits` to the first step: {start} s, fastest of five {fastest} s.

## Memory

A worker of a sweep that trains {memory}, beyond the programs themselves: {used} MB,
{share:.2f} times the sum of parameters, gradients, what optimizer and method remember ({state:.1f} MB
with plain SGD), and the data ({data:.0f} MB: the decoded file, which processes share, and the examples trained on).

## What was tried and did not help

Looked at once each; the raw times were not kept, so no numbers are given.

- ResNet-18 in `channels_last`: no gain. Compiled it was slower than the plain loop, vectorised over members too, and
  took minutes to compile: therefore large steps are not compiled on a CPU. Most of its gain above is from leaving out
  the taps of kernels that only meet padding.
- The power iteration of a compiled population as elementwise products and sums, or as a product for each member, in
  place of batched products: the same within noise. What helped was to prepare the vectors when they are kept: a
  compiler that fuses their preparation into the product does it again for every row.
- Skipping the guards of a compiled step: nothing within noise.
- The regularizer's small operators as `_foreach_` calls: fewer of them, no faster on a CPU.
- Rank-one updates by `addr_`, biases by `addcmul_`: nothing within noise in a whole step. On the MLP a step of the
  regularizer takes nearly twice as long in training as with its data in the caches: what is left is many calls of small
  operators, and data that have to be fetched again.

## On a GPU

Not measured: none was at hand.
"""


def page(found: dict[str, Any]) -> str:
    """The tables of all measurements."""
    facts = found["machine"]
    moved, counted = facts["bandwidth"] / 1e9, facts["multiply-adds"] / 1e9
    machine = f"Memory bandwidth {moved:.1f} GB/s, {counted:.0f} G multiply-adds a second."
    overhead = ["| network | variant | ratio to none | quartiles |", "|---|---|---|---|"]
    for path in sorted(Path("results/overhead").glob("share-*.json")):
        seconds = json.loads(path.read_text())["seconds"]
        for name, times_of in seconds.items():
            low, middle, high = statistics.quantiles(
                [each / base for each, base in zip(times_of, seconds["none"], strict=True)], n=4
            )
            if name != "none":
                overhead.append(
                    f"| {path.stem.removeprefix('share-')} | {name} | {middle:.3f} | {low:.3f} to {high:.3f} |"
                )
    for path in sorted(Path("results/overhead").glob("within-*.json")):
        ratios_of = json.loads(path.read_text())["ratios"]
        network = path.stem.removeprefix("within-")
        for form, each in (ratios_of if isinstance(ratios_of, dict) else {"coupled": ratios_of}).items():
            low, middle, high = statistics.quantiles(each, n=4)
            what = f"spectral, {form}, timed within its steps"
            overhead.append(f"| {network} | {what} | {middle:.3f} | {low:.3f} to {high:.3f} |")
    alone = ["| network | bytes | share of the bandwidth |", "|---|---|---|"]
    alone += [f"| {row['what']} | {row['bytes'] / 1e6:.0f} MB | {row['share']:.0%} |" for row in found["alone"]]
    population = ["| method | times an eager loop | quartiles | member steps a second |", "|---|---|---|---|"]
    population += [
        f"| {row['what']} | {row['ratio']:.2f} | {row['low']:.2f} to {row['high']:.2f} "
        f"| {row['member steps a second']:,.0f} |"
        for row in found["population"]
    ]
    stacked = ["| batch | million operations | together, times alone | quartiles |", "|---|---|---|---|"]
    stacked += [
        f"| {row['what']} | {row['operations'] / 1e6:.0f} | {row['ratio']:.2f} "
        f"| {row['low']:.2f} to {row['high']:.2f} |"
        for row in found["stacking"]
    ]
    compiling = [row["compiling"] for row in found["population"]]
    (big, medium), (resnet,), (start,), (memory,) = (found[name] for name in ("big", "resnet", "start", "memory"))
    return PAGE.format(
        machine=machine,
        overhead="\n".join(overhead),
        alone="\n".join(alone),
        population="\n".join(population),
        stacking="\n".join(stacked),
        small_step=SMALL_STEP / 1e6,
        compiling=f"{min(compiling):.0f} to {max(compiling):.0f} s",
        big=_faster(big),
        medium=_faster(medium),
        resnet=_faster(resnet),
        start=f"{start['seconds']:.1f}",
        fastest=f"{start['fastest']:.1f}",
        memory=memory["what"],
        used=f"{memory['used'] / 1e6:.0f}",
        share=memory["ratio"],
        state=memory["state"] / 1e6,
        data=memory["data"] / 1e6,
    )


def _faster(row: dict[str, Any]) -> str:
    return f"{row['ratio']:.2f} times as fast ({row['low']:.2f} to {row['high']:.2f})"


def main() -> None:
    config = tyro.cli(Performance)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    machine = f"{platform.machine()}-{torch.backends.cpu.get_cpu_capability()}"
    path = RESULTS / f"{machine.lower()}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    found["machine"] = {
        "torch": torch.__version__,
        "platform": platform.platform(),
        "bandwidth": bandwidth(config.rounds),
        "multiply-adds": arithmetic(config.rounds),
    }
    for name in config.only or BENCHMARKS:
        console.print(name)
        found[name] = BENCHMARKS[name](config.rounds)
        console.print(found[name])
        RESULTS.mkdir(exist_ok=True)
        path.write_text(json.dumps(found, indent=1))
    if found.keys() >= BENCHMARKS.keys():
        Path("docs/performance.md").write_text(page(found))


if __name__ == "__main__":
    main()
