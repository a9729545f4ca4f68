"""The commands that repeat a run."""

import inspect
import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from supple.lab.run import Run
from supple.report.texts import consecutive_ranges
from supple.rl import run as control
from supple.rl.methods import RESETS, default_strength, find
from supple.rl.presets import PRESETS, Constants
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
    "autocast": "autocast",
}
"""The option of ``supple run`` for each field of a run."""


def commands(config: Mapping[str, Any], device: str = "cpu") -> list[str]:
    """The commands that train these members again: one for each strength and each range of consecutive seeds.

    Current defaults are left out. Empty if the run can only be made in Python, or is of another version.

    Args:
        config: a run's configuration, of the laboratory or of reinforcement learning, as the store holds it.
        device: of the agents; the laboratory chooses its own.
    """
    try:
        run = Run.of_config(config)
        return _laboratory(run) if run else _control(config, device)
    except (Exception, SystemExit):  # another version's run, or the user's own code, which may raise anything
        return []


def _laboratory(run: Run) -> list[str]:
    usual = methods.find(run.method).strength
    own = Run.of(run.problem, run.method, [0], scale=run.scale, strength=run.strengths[0])
    options = dict(json.loads(run.options))
    changed = {name: getattr(run, name) for name in OPTIONS if getattr(run, name) != getattr(own, name)}
    if None in changed.values() or not all(map(_fits_command_line, options.values())):
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
    return [
        command
        for strength in dict.fromkeys(run.strengths)
        for command in _by_seeds(
            common + ([] if strength == usual else ["--strength", str(strength)]),
            [seed for seed, its in zip(run.seeds, run.strengths, strict=True) if its == strength],
        )
    ]


def _control(config: Mapping[str, Any], device: str) -> list[str]:
    options, (strength, *_) = json.loads(config["options"]), config["strengths"]
    actor_strength, exempt_heads = options.pop("actor_strength", None), options.pop("exempt_heads", False)
    resets, options = (options, {}) if config["method"] == RESETS else ({}, options)
    if not all(map(_fits_command_line, options.values())):
        return []
    if "parts" in resets:
        resets["parts"] = tuple(resets["parts"].split())
    settings = {name: config[name] for name in control.COMMAND_FIELDS if name in config}
    run = control.Run.of(
        config["problem"],
        config["method"],
        config["seeds"],
        strength=strength,
        actor_strength=actor_strength,
        resets=resets,
        options=options,
        exempt_heads=exempt_heads,
        matmul_precision=config.get("matmul_precision"),
        **settings,
    )
    if json.dumps(run.config(), sort_keys=True) != json.dumps(config, sort_keys=True):
        return []
    defaults = {name: parameter.default for name, parameter in inspect.signature(control.Run.of).parameters.items()}
    defaults |= asdict(Constants(**PRESETS[run.preset]))
    arguments = {name: value for name, value in settings.items() if value != defaults[name]}
    if strength != default_strength(find(run.method)):
        arguments["strength"] = strength
    if actor_strength is not None:
        arguments["actor_strength"] = actor_strength
    if options:
        arguments["option"] = tuple(part for pair in options.items() for part in pair)
    if exempt_heads != find(run.method).control_exempts_heads:
        arguments["exempt_heads" if exempt_heads else "no_exempt_heads"] = True
    if "matmul_precision" in config:
        arguments["matmul_precision"] = run.matmul_precision
    arguments |= {f"reset_{name}": value for name, value in resets.items()}
    if device != "cpu":
        arguments["device"] = device
    common = ["supple", "rl", run.problem, "--method", run.method]
    for name, value in arguments.items():
        values = value if isinstance(value, tuple) else () if value is True else (value,)
        common += [f"--{name.replace('_', '-')}", *map(str, values)]
    return _by_seeds(common, run.seeds)


def _by_seeds(common: list[str], seeds: Iterable[int]) -> list[str]:
    """A command for each range of consecutive seeds."""
    return [
        shlex.join([*common, *(["--first-seed", str(first)] if first else []), "--seeds", str(last - first + 1)])
        for first, last in consecutive_ranges(list(seeds))
    ]


def _fits_command_line(value: Any) -> bool:
    """Whether the command line can pass the value: numbers, and words that can't be read as numbers or booleans."""
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return not value.startswith("-") and value.lower() not in ("true", "false")
        return False
    return isinstance(value, int | float)
