"""The problems by name: what is learned, how it changes, and under which protocol."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from supple.errors import known
from supple.lab.methods import METHODS
from supple.runs.store import RunFolder

Entry = TypeVar("Entry")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A stream of tasks and the protocol for learning it."""

    summary: str
    scale: str
    """``quick`` ends in minutes on two cores; ``paper`` is the published protocol."""
    dataset: str
    shift: str
    model: str
    tasks: int
    epochs: int
    """For each task."""
    batch_size: int
    step_size: float = 1e-3
    """Adam's."""


PROBLEMS: dict[str, Problem] = {
    "random-label-digits": Problem(
        summary="memorize new random labels for 1,797 digit scans, 30 times over",
        scale="quick",
        dataset="digits",
        shift="random-labels",
        model="mlp",
        tasks=30,
        epochs=40,
        batch_size=256,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that determines a run's numbers: its folder is named after this content."""

    problem: str
    method: str
    strength: float
    seeds: tuple[int, ...]
    """One member of the population each: its initial weights, its tasks and its batches."""
    scale: str
    dataset: str
    shift: str
    model: str
    tasks: int
    epochs: int
    batch_size: int
    step_size: float

    @classmethod
    def of(cls, problem: str, method: str, seeds: Iterable[int], **changes: Any) -> "Run":
        """The run of a named method on a named problem; ``changes`` that are None leave the defaults.

        Raises:
            ValueError: for an unknown name, with the nearest known one, or nothing to train.
        """
        protocol = dataclasses.asdict(named(problem, PROBLEMS, "problem"))
        del protocol["summary"]
        defaults = protocol | {"strength": named(method, METHODS, "method").strength}
        given = {name: value for name, value in changes.items() if value is not None}
        run = cls(problem=problem, method=method, seeds=tuple(seeds), **(defaults | given))
        if not run.seeds or run.tasks < 1:
            raise ValueError(f"expected at least one seed and one task, got {len(run.seeds)} and {run.tasks}")
        # One content, one folder: 1 and 1.0 are the same number.
        return dataclasses.replace(run, strength=float(run.strength), step_size=float(run.step_size))

    def folder(self, root: Path) -> RunFolder:
        """Where under ``root`` the run's results belong."""
        return RunFolder(root, dataclasses.asdict(self))


def named(name: str, table: Mapping[str, Entry], kind: str) -> Entry:
    """The table's entry, or an error that lists the known names and suggests the nearest."""
    return table[known(name, table, kind)]
