"""A dry run: finds mistakes before anything is written and any process is started."""

import logging
from collections.abc import Iterable
from dataclasses import replace

from supple.lab.run import Run
from supple.lab.trainer import Trainer


def dry_run(runs: Iterable[Run]) -> None:
    """For each kind of run, build everything and take a step on two images.

    A log message names methods that would never act, because the runs are shorter than their period.

    Raises:
        ValueError: if data set, shift, network and method don't fit together.
        Exception: any exception from the user's own code.
    """
    kinds: dict[Run, tuple[Run, int]] = {}
    for run in runs:
        first = replace(run, epochs=1, diagnostics=(), seeds=run.seeds[:1], strengths=run.strengths[:1])
        kinds.setdefault(replace(first, seeds=(), strengths=(), step_size=0.0), (first, run.epochs))
    for run, epochs in kinds.values():
        with run.naming_own_parts():
            trainer = Trainer(run, compiled=False, device="cpu")
            trainer.dry_run()
        method = trainer.learner.mitigator
        most = len(trainer.data.train.labels) // run.batch_size * epochs * run.tasks  # a task may have fewer images
        if method.scheduled and most <= (every := getattr(method, "every", 0)):  # it acts before the step after that
            logging.getLogger("supple").warning(
                f"{run.method} acts every {every:,} steps, but a run has at most {most:,}: it would never act. Give it "
                "a shorter period, as in --option every 100"
            )
