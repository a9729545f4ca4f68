"""The commands that repeat a run."""

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
"""The option of ``supple run`` for each field of a run."""


def commands(run: Run) -> list[str]:
    """The commands that train these members again: one for each strength and each range of consecutive seeds.

    Values that are the problem's current defaults are left out. Empty if the run can only be made in Python.
    """
    try:
        usual = methods.find(run.method).strength
        own = Run.of(run.problem, run.method, [0], scale=run.scale, strength=run.strengths[0])
        options = dict(json.loads(run.options))
    except (Exception, SystemExit):  # another version's run, or the user's own code, which may raise anything
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
    """Whether the command line can pass the value: numbers, and words that can't be read as numbers or booleans."""
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return not value.startswith("-") and value.lower() not in ("true", "false")
        return False
    return isinstance(value, int | float)
