"""Grids of runs: which of their members are there already, and which of the others are trained as one population."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, replace
from itertools import islice
from typing import Any

import polars as pl
import torch

from supple.lab.operations import operations
from supple.lab.run import Run
from supple.runs.stats import ranking
from supple.runs.store import configurations, load
from supple.training.methods import find

TUNING_SEEDS = 1000
"""Seeds from here on are for choosing strengths and step sizes; those from 0 on are reported."""

SMALL_STEP = 100e6
"""Operations of one member's step below which a CPU is faster with members stacked than with one after the other: ten
together gain 2.1 times at 9 million, 1.4 at 69 and nothing at 275 (benchmarks/performance.py)."""

MOST_STACKED = {"cpu": 10, "cuda": 64}
"""Members of one population, where stacking pays at all."""

Member = tuple[str, int]
"""A run's folder, and the place in its population."""


def product(
    problem: str,
    methods: Iterable[str],
    seeds: Iterable[int],
    *,
    strengths: Sequence[float] = (),
    step_sizes: Sequence[float] = (),
    **changes: Any,
) -> list[Run]:
    """Every method with every strength (where it has one), step size and seed, each a run of one member.

    Args:
        problem: a name from ``PROBLEMS``.
        methods: names from ``METHODS``.
        seeds: of the members.
        strengths: each method's default when left out.
        step_sizes: the problem's when left out.
        changes: to the protocol, as :meth:`Run.of` takes them.
    """
    seeds = [*islice(seeds, TUNING_SEEDS + 1)]
    if len(seeds) > TUNING_SEEDS:
        raise ValueError(
            f"expected at most {TUNING_SEEDS} seeds, got more: those from {TUNING_SEEDS} on are for tuning"
        )
    members = [
        Run.of(problem, method, [seed], strength=strength, step_size=step_size, **changes)
        for seed in seeds
        for method in dict.fromkeys(methods)
        for strength in (find(method).has_strength and strengths) or (None,)
        for step_size in step_sizes or (None,)
    ]
    if not members:
        raise ValueError("expected at least one method and one seed, got none: nothing would be trained")
    return members


def alone(run: Run) -> list[Run]:
    """One run for each member."""
    return [
        replace(run, seeds=(seed,), strengths=(strength,))
        for seed, strength in zip(run.seeds, run.strengths, strict=True)
    ]


def together(runs: Iterable[Run], most: int) -> list[Run]:
    """The same members in as few runs as possible, none of more than ``most``."""
    alike: dict[Run, list[Run]] = {}
    for run in runs:
        alike.setdefault(replace(run, seeds=(), strengths=()), []).extend(alone(run))
    parts = [members[at : at + most] for members in alike.values() for at in range(0, len(members), most)]
    return [
        replace(
            part[0],
            seeds=tuple(run.seeds[0] for run in part),
            strengths=tuple(run.strengths[0] for run in part),
        )
        for part in parts
    ]


def finished(root: str) -> dict[Run, Member]:
    """Every member that has been trained to its end under ``root``, as the run of it alone."""
    return {
        member: (folder, index)
        for folder, run in _begun(root)
        if run.folder(root).finished(run.tasks)
        for index, member in enumerate(alone(run))
    }


def missing(wanted: Iterable[Run], root: str) -> list[Run]:
    """What is left to train of ``wanted``: what was interrupted as it is, the rest as populations where that is faster.

    A population whose members are all wanted goes on although the same grid would be cut into others today.
    """
    there = finished(root)
    left = dict.fromkeys(member for run in wanted for member in alone(run) if member not in there)
    interrupted = []
    for _, run in _begun(root):
        if left.keys() >= set(alone(run)):
            interrupted.append(run)
            for member in set(alone(run)):
                del left[member]
    kinds = together(left, len(left) or 1)
    return interrupted + [run for kind in kinds for run in together([kind], most_stacked(kind))]


def results(wanted: Iterable[Run], root: str) -> pl.DataFrame:
    """What has been measured of ``wanted``, in their order."""
    there = finished(root)
    asked = dict.fromkeys(member for run in wanted for member in alone(run))
    members = [there[member] for member in asked if member in there]
    order = pl.DataFrame(members, schema={"run": pl.String, "member": pl.Int64}, orient="row")
    return order.join(load(root, set(order["run"])), on=["run", "member"], maintain_order="left_right")


def _begun(root: str) -> Iterator[tuple[str, Run]]:
    """Every run under ``root`` that was begun, with its folder."""
    names = {field.name for field in fields(Run)}
    for folder, config in configurations(root).items():
        if config.keys() == names:  # otherwise it is of another kind, or of another version
            lists = {name: tuple(value) for name, value in config.items() if isinstance(value, list)}
            yield folder, Run(**config | lists)


def tuned(rows: pl.DataFrame) -> set[tuple[str, float, float]]:
    """For each method, its best strength and step size in the last tasks: (method, strength, step size).

    Judged on validation accuracy where there is such a thing, otherwise (random labels) on training accuracy.
    """
    metric = next(name for name in ("validation_accuracy", "train_accuracy") if name in rows["metric"])
    best = ranking(rows, metric).unique("method", keep="first")
    return set(best.select("method", "strength", "step_size").rows())


def reported(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows of one protocol without the seeds that are for tuning, unless there are no others yet."""
    found = rows.filter(pl.col("seed") < TUNING_SEEDS)
    return rows if found.is_empty() else found


def most_stacked(run: Run) -> int:
    """How many members of such a run are trained as one population: one where that is no faster."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return MOST_STACKED[device] if device == "cuda" or operations(run) < SMALL_STEP else 1
