"""The page docs/performance.md, from the results of performance.py and overhead.py."""

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gpu_page import section
from measuring import ratios

from supple.lab.grid import SMALL_STEP

PAGE = """# Speed

Written by `python benchmarks/performance.py` and `python benchmarks/overhead.py` from their raw results (in
`benchmarks/results` and `results/overhead`). Each number is the median ratio of two things that took turns in one run,
with its quartiles, in processor seconds of one thread, so that other processes count as little as possible. The virtual
machine is shared: the quartiles of "none again", a step against itself, show the noise. {machine}

## The regularizer's share of a training step

Time of a step with the regularizer, or with an alternative, over the same step without. The rows *timed within its
steps* are the most reliable: the regularizer's own seconds are measured inside each step, and the ratio is the whole
step over the step minus these seconds, so that differences between steps do not count. *A plain loop* is the same
regularizer, written as a simple loop over the parameters. The MLP has 784 inputs and four hidden layers of 256 ReLU
units, and is trained with Adam at batch 512 in float32; ViT-Tiny at batch 250 (`python benchmarks/overhead.py`,
`--within` for the times within steps).

{overhead}

## Diagnostics

All diagnostics of a `PlasticityMonitor` together, on 256 examples and one thread, take 0.07 s for the MLP (0.7 % of a
task of 1,000 steps) and 4.7 s for ResNet-18 (0.2 % of a task of 4,000 steps; `python benchmarks/diagnostics.py`, whose
ResNet-18 had ImageNet's stem then; it now is the laboratory's). Between measurements the monitor costs nothing.

## The regularizer alone

The regularizer's step alone, against the memory's bandwidth: each weight is read twice, each gradient read and written
once.

{alone}

## Many networks at once

Ten members of permuted MNIST as in Kumar et al. (2023) (784-100-100-10, batch 16, SGD), compiled and vectorized
over the members (networks), for each member against a plain eager loop on one network. Compiling is not counted; it
took {compiling}.

{population}

The same with the method at other batch sizes, a member of ten against one alone, both compiled. On a CPU, a sweep
stacks networks if one step of one takes less than {small_step:.0f} million operations.

{stacking}

A step of the 4x256 MLP at batch 512 (Adam), as the laboratory takes it, against a plain loop: {big}; with
`--matmul-precision medium`, on a processor with units for bfloat16: {medium}.
ResNet-18 on CIFAR-10 at batch 250 against a plain loop with a DataLoader: {resnet}. {autocast}

## The start

From typing `supple run random-label-digits` to the first step: {start} s (median of five; the fastest {fastest} s).

## Memory

A worker of a sweep that trains {memory} needs {used} MB beyond the program itself. That
is {share:.2f} times the size of its parameters, gradients, state of optimizer and method ({state:.1f} MB with plain
SGD), and data ({data:.0f} MB: the decoded file, which processes share, and the examples trained on).

## What was tried and did not help

Each was tried once; the raw times were not kept, so no numbers are given.

- ResNet-18 in `channels_last`: no gain (the small network of Continual ImageNet does gain, and has it).
  Compiled it was slower than the plain loop, vectorized over members too, and took minutes to compile: therefore large
  steps and convolutions are not compiled on a CPU. Most of its gain above is from leaving out the taps of kernels that
  only meet padding.
- The power iteration of a compiled population as elementwise products and sums, or as a product for each member, in
  place of batched products: the same within noise. What helped was to prepare the vectors when they are kept: a
  compiler that fuses their preparation into the product does it again for every row.
- Skipping the guards of a compiled step: no difference beyond noise.
- The regularizer's small operators as `_foreach_` calls: fewer of them, no faster on a CPU.
- Rank-one updates by `addr_`, biases by `addcmul_`: no gain beyond noise in a whole step. On the MLP a step of the
  regularizer takes nearly twice as long in training as with its data in the caches: what is left is many calls of small
  operators, and data that have to be fetched again.

{gpu}"""


def page(measured: dict[str, Any]) -> str:
    """The tables of all measurements."""
    bandwidth, products = measured["machine"]["bandwidth"] / 1e9, measured["machine"]["multiply-adds"] / 1e9
    compiling = [row["compiling"] for row in measured["population"]]
    (big, medium), (resnet,), (start,), (memory,) = (measured[name] for name in ("big", "resnet", "start", "memory"))
    return PAGE.format(
        gpu=section(Path("results/gpu")),
        machine=f"Memory bandwidth {bandwidth:.1f} GB/s, {products:.0f} G multiply-adds a second.",
        overhead=table("network | variant | ratio to none | quartiles | rounds", [*shares(), *shares_within()]),
        alone=table(
            "network | bytes | share of the bandwidth",
            (f"{row['what']} | {row['bytes'] / 1e6:.0f} MB | {row['share']:.0%}" for row in measured["alone"]),
        ),
        population=table(
            "method | speed-up over an eager loop | quartiles | member steps a second",
            (f"{row['what']} | {gain(row)} | {row['member steps a second']:,.0f}" for row in measured["population"]),
        ),
        stacking=table(
            "batch | million operations | speed-up over alone | quartiles",
            (f"{row['what']} | {row['operations'] / 1e6:.0f} | {gain(row)}" for row in measured["stacking"]),
        ),
        small_step=SMALL_STEP / 1e6,
        compiling=f"{min(compiling):.0f} to {max(compiling):.0f} s",
        big=faster(big),
        medium=faster(medium),
        resnet=faster(resnet),
        autocast=autocast(*measured.get("precision", ())),
        start=f"{start['seconds']:.1f}",
        fastest=f"{start['fastest']:.1f}",
        memory=memory["what"],
        used=f"{memory['used'] / 1e6:.0f}",
        share=memory["ratio"],
        state=memory["state"] / 1e6,
        data=memory["data"] / 1e6,
    )


def table(titles: str, rows: Iterable[str]) -> str:
    columns = titles.count("|") + 1
    return "\n".join([f"| {titles} |", "|---" * columns + "|", *(f"| {row} |" for row in rows)])


def shares() -> Iterable[str]:
    """Whole steps of each variant relative to those without a method, by network."""
    for path in sorted(Path("results/overhead").glob("share-*.json")):
        seconds = json.loads(path.read_text())["seconds"]
        for name, times in seconds.items():
            if name != "none":
                of_none = spread(ratios(times, seconds["none"]))
                yield f"{path.stem.removeprefix('share-')} | {name} | {of_none} | {len(times)}"


def shares_within() -> Iterable[str]:
    """The regularizer's own time inside of steps, by network and form."""
    for path in sorted(Path("results/overhead").glob("within-*.json")):
        measured = json.loads(path.read_text())
        by_form, rounds = measured["ratios"], measured["config"]["rounds"]
        if not isinstance(by_form, dict):
            by_form = {"coupled": by_form}  # files from before the decoupled form was timed too
        for form, values in by_form.items():
            network = path.stem.removeprefix("within-")
            yield f"{network} | spectral, {form}, timed within its steps | {spread(values)} | {rounds}"


def spread(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.3f} | {low:.3f} to {high:.3f}"


def gain(row: dict[str, Any]) -> str:
    return f"{row['ratio']:.2f} | {row['low']:.2f} to {row['high']:.2f}"


def autocast(row: dict[str, Any] | None = None) -> str:
    """The sentence about autocast, if it was measured."""
    if row is None:
        return ""
    units = "with" if row["has bfloat16 units"] else "without"
    return (
        "The same step with `--autocast bfloat16` against itself in float32, on a processor "
        f"{units} units for bfloat16: {faster(row)}."
    )


def faster(row: dict[str, Any]) -> str:
    return f"{row['ratio']:.2f} times as fast ({row['low']:.2f} to {row['high']:.2f})"
