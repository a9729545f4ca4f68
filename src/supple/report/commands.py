"""The command that repeats a run."""

import json
import shlex
from typing import Any

from supple.lab.run import Run
from supple.report.texts import stretches
from supple.training import methods

OPTIONS = {
    "dataset": "data",
    "examples": "examples",
    "shift": "shift",
    "model": "model",
    "optimizer": "optimizer",
    "step_size": "step-size",
    "batch_size": "batch-size",
    "epochs": "epochs",
    "tasks": "tasks",
    "matmul_precision": "matmul-precision",
}
"""What ``supple run`` calls the parts of a run."""


def commands(run: Run) -> list[str]:
    """What to type to train these members again: one command for each strength and each stretch of seeds.

    What is the problem's own today is left out. Empty where only Python can make such a run.
    """
    try:
        usual = methods.find(run.method).strength
        own = Run.of(run.problem, run.method, [0], scale=run.scale, strength=run.strengths[0])
        options = dict(json.loads(run.options))
    except (Exception, SystemExit):  # of another version, or somebody's own code, which may do anything
        return []
    changed = {name: getattr(run, name) for name in OPTIONS if getattr(run, name) != getattr(own, name)}
    if None in changed.values() or not all(map(_typed, options.values())):
        return []
    common = ["supple", "run", run.problem, "--method", run.method]
    if run.scale != "quick":
        common += ["--scale", run.scale]
    for name, option in OPTIONS.items():
        if name in changed:
            common += [f"--{option}", str(changed[name])]
    if run.diagnostics != own.diagnostics:
        common += ["--diagnostics", *run.diagnostics]
    if options:
        common += ["--option", *(str(part) for pair in options.items() for part in pair)]
    found = []
    for strength in dict.fromkeys(run.strengths):
        chosen = [] if strength == usual else ["--strength", str(strength)]
        seeds = [seed for seed, its in zip(run.seeds, run.strengths, strict=True) if its == strength]
        for first, last in stretches(seeds):
            begin = ["--first-seed", str(first)] if first else []
            found.append(shlex.join([*common, *chosen, *begin, "--seeds", str(last - first + 1)]))
    return found


def _typed(value: Any) -> bool:
    """Whether the command line can say it: numbers, and words that are no numbers."""
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return not value.startswith("-") and value.lower() not in ("true", "false")
        return False
    return isinstance(value, int | float)
