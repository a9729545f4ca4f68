"""What can be wrong about runs is found before anything of them is written, or a process is started."""

from collections.abc import Iterable
from dataclasses import replace

from supple.lab.run import Run
from supple.lab.trainer import Trainer


def rehearse(runs: Iterable[Run]) -> None:
    """Build what each kind of run needs, and take a step on two images.

    Raises:
        ValueError: for a data set, a shift, a network or a method that does not fit the others.
        Exception: whatever somebody's own code raises.
    """
    kinds: dict[Run, Run] = {}
    for run in runs:
        first = replace(run, epochs=1, diagnostics=(), seeds=run.seeds[:1], strengths=run.strengths[:1])
        kinds.setdefault(replace(first, seeds=(), strengths=(), step_size=0.0), first)
    for run in kinds.values():
        with run.blamed():
            Trainer(run, compiled=False, device="cpu").rehearse()
