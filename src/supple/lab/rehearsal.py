"""Detect mistakes in runs before anything is written and any process is started."""

from collections.abc import Iterable
from dataclasses import replace

from supple.lab.run import Run
from supple.lab.trainer import Trainer


def rehearse(runs: Iterable[Run]) -> None:
    """For each kind of run, build everything and take a step on two images.

    Raises:
        ValueError: if data set, shift, network and method don't fit together.
        Exception: any exception from the user's own code.
    """
    kinds: dict[Run, Run] = {}
    for run in runs:
        first = replace(run, epochs=1, diagnostics=(), seeds=run.seeds[:1], strengths=run.strengths[:1])
        kinds.setdefault(replace(first, seeds=(), strengths=(), step_size=0.0), first)
    for run in kinds.values():
        with run.naming_own_parts():
            Trainer(run, compiled=False, device="cpu").rehearse()
