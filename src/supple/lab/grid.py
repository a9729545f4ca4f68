"""Grids of runs: find the members that are already trained, and group the others into populations."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import polars as pl
import torch

from supple.lab.operations import equally_long, operations
from supple.lab.problems import is_online
from supple.lab.run import Run
from supple.runs.metrics import judges
from supple.runs.stats import ranking
from supple.runs.store import configurations, load
from supple.training.methods import find

TUNING_SEEDS = 1000
"""The first seed for choosing strengths and step sizes; reported seeds start from 0."""

SMALL_STEP = 100e6
"""On a CPU, stacked members are faster than one after the other if one member's step takes fewer operations than this:
ten members together gain 2.1 times at 9 million, 1.4 at 69 and nothing at 275 (benchmarks/performance.py)."""

MAX_STACKED = {"cpu": 10, "cuda": 64}
"""The largest number of members in one population, by device."""

Member = tuple[str, int]
"""A run's folder, and the member's index in its population."""


def product(
    problem: str,
    methods: Iterable[str],
    seeds: Iterable[int],
    *,
    strengths: Sequence[float] = (),
    step_sizes: Sequence[float] = (),
    **changes: Any,
) -> list[Run]:
    """All combinations of method, strength (if the method has one), step size and seed, each as a run of one member.

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
        raise ValueError(f"expected at most {TUNING_SEEDS} seeds, got more: choose fewer (later ones are for tuning)")
    methods = [*dict.fromkeys(methods)]
    if strengths and not any(find(method).has_strength for method in methods):
        raise ValueError(f"expected methods with a strength, got {', '.join(methods)}: leave --strength out")
    members = [
        Run.of(problem, method, [seed], strength=strength, step_size=step_size, **changes)
        for seed in seeds
        for method in methods
        for strength in (find(method).has_strength and strengths) or (None,)
        for step_size in step_sizes or (None,)
    ]
    if not members:
        raise ValueError("expected at least one method and one seed, got none: give both")
    return members


def by_member(run: Run) -> list[Run]:
    """Split a run into one run per member."""
    return [
        replace(run, seeds=(seed,), strengths=(strength,))
        for seed, strength in zip(run.seeds, run.strengths, strict=True)
    ]


def merged(runs: Iterable[Run], most: int) -> list[Run]:
    """Regroup the members into as few runs as possible, with at most ``most`` members per run."""
    groups: dict[Run, list[Run]] = {}
    for run in runs:
        groups.setdefault(replace(run, seeds=(), strengths=()), []).extend(by_member(run))
    populations = [members[at : at + most] for members in groups.values() for at in range(0, len(members), most)]
    return [
        replace(
            members[0],
            seeds=tuple(run.seeds[0] for run in members),
            strengths=tuple(run.strengths[0] for run in members),
        )
        for members in populations
    ]


def finished(root: str) -> dict[Run, Member]:
    """Every member under ``root`` whose training is finished; the key is the run with only this member."""
    return {
        member: (folder, index)
        for folder, run in _runs_in(root)
        if run.folder(root).finished(run.tasks)
        for index, member in enumerate(by_member(run))
    }


def missing(wanted: Iterable[Run], root: str) -> list[Run]:
    """The runs left to train: interrupted runs unchanged, all other members as populations where that is faster.

    An interrupted population continues if all its members are wanted, even if they would be grouped differently now.
    """
    done = finished(root)
    left = dict.fromkeys(member for run in wanted for member in by_member(run) if member not in done)
    interrupted = []
    for _, run in _runs_in(root):
        if left.keys() >= set(by_member(run)):
            interrupted.append(run)
            for member in set(by_member(run)):
                del left[member]
    kinds = merged(left, len(left) or 1)
    return interrupted + [run for kind in kinds for run in merged([kind], most_stacked(kind))]


def results(wanted: Iterable[Run], root: str) -> pl.DataFrame:
    """The measurements of the finished members of ``wanted``, in the same order."""
    done = finished(root)
    asked = dict.fromkeys(member for run in wanted for member in by_member(run))
    members = [done[member] for member in asked if member in done]
    order = pl.DataFrame(members, schema={"run": pl.String, "member": pl.Int64}, orient="row")
    return order.join(load(root, set(order["run"])), on=["run", "member"], maintain_order="left_right")


def _runs_in(root: str) -> Iterator[tuple[str, Run]]:
    """Every run that has a folder under ``root``, with the folder's name."""
    for folder, config in configurations(root).items():
        if run := Run.of_config(config):
            yield folder, run


def tuned(rows: pl.DataFrame) -> set[tuple[str, float, float]]:
    """For each method, its best strength and step size in the last tasks: (method, strength, step size).

    The criterion is online accuracy if the problem's authors report that; else validation accuracy if it was measured,
    otherwise (random labels) training accuracy. A setting with fewer diverged networks is better than any with more.
    """
    metric = next(name for name in judges(is_online(rows["problem"][0])) if name in rows["metric"])
    best = ranking(rows, metric).sort("diverged", maintain_order=True).unique("method", keep="first")
    return set(best.select("method", "strength", "step_size").rows())


def reported(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows of one protocol without the tuning seeds; all rows if there are no other seeds yet."""
    kept = rows.filter(pl.col("seed") < TUNING_SEEDS)
    return rows if kept.is_empty() else kept


def most_stacked(run: Run) -> int:
    """The largest population for this run; 1 if stacking members is not faster, or if their tasks differ in length."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    is_faster = device == "cuda" or operations(run) < SMALL_STEP
    return MAX_STACKED[device] if is_faster and equally_long(run) else 1
