"""The command that repeats a run, read back by the command line itself."""

import dataclasses
import itertools
import json
import shlex
from unittest import mock

import pytest
import tyro
from hypothesis import given, settings
from hypothesis import strategies as st

from supple.cli import COMMANDS
from supple.lab.grid import by_member
from supple.lab.problems import PROBLEMS
from supple.lab.run import Run
from supple.report import commands as report_commands
from supple.rl import run as control
from supple.rl.methods import METHODS as CONTROL_METHODS
from supple.training.methods import METHODS

DIGITS = "random-label-digits"


def commands(run, device="cpu"):
    """Of a run, from its configuration as the store holds it."""
    config = dataclasses.asdict(run) if isinstance(run, Run) else run.config()
    return report_commands.commands(json.loads(json.dumps(config)), device)


def typed(command):
    """The members that the command trains."""
    name, *arguments = shlex.split(command)
    assert name == "supple"
    return tyro.extras.subcommand_cli_from_dict(COMMANDS, args=arguments, config=(tyro.conf.DisallowNone,)).members()


def repeated(run):
    return list(itertools.chain(*map(typed, commands(run))))


@pytest.mark.parametrize("problem", PROBLEMS)
def test_every_problem_and_scale(problem):
    for scale in PROBLEMS[problem].scales:
        run = Run.of(problem, "spectral", range(3), scale=scale)
        assert repeated(run) == by_member(run)


@pytest.mark.parametrize("method", METHODS)
def test_every_method(method):
    run = Run.of(DIGITS, method, [0], strength=METHODS[method].strength / 3)
    assert repeated(run) == by_member(run)


strengths = st.floats(1e-9, 1e3)
words = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1).map("a".__add__)
numbers = st.integers(-(10**6), 10**6) | st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=40)
@given(
    changes=st.fixed_dictionaries(
        {},
        optional={
            "dataset": words,
            "examples": st.integers(1, 10**6),
            "shift": words,
            "model": words,
            "optimizer": st.sampled_from(["adam", "sgd", "muon"]),
            "step_size": strengths,
            "batch_size": st.integers(1, 1000),
            "epochs": st.integers(1, 1000),
            "tasks": st.integers(1, 1000),
            "matmul_precision": st.sampled_from(["highest", "high", "medium"]),
            "autocast": st.just("bfloat16"),
            "diagnostics": st.lists(st.sampled_from(["spectral_norm", "dead_units", "stable_rank"]), unique=True),
        },
    ),
    options=st.fixed_dictionaries(
        {},
        optional={
            "exponent": st.integers(-(10**6), 10**6),
            "target": numbers,
            "decoupled": st.booleans(),
            "one_sided": st.booleans(),
        },
    ),
    strength=strengths,
    first=st.integers(0, 2000),
    count=st.integers(1, 4),
)
def test_whatever_can_be_typed_comes_back(changes, options, strength, first, count):
    seeds = range(first, first + count)
    run = Run.of(DIGITS, "spectral", seeds, strength=strength, options=options, **changes)
    (command,) = commands(run)
    assert typed(command) == by_member(run)


def test_a_method_without_a_default_strength():
    run = Run.of(DIGITS, "support.extensions:Bare", [0], strength=0.1)
    assert repeated(run) == [run]


def test_what_is_the_problems_own_is_left_out():
    assert commands(Run.of(DIGITS, "spectral", range(3))) == [f"supple run {DIGITS} --method spectral --seeds 3"]


def test_a_command_for_each_strength_and_stretch_of_seeds():
    parts = [Run.of(DIGITS, "l2", [seed], strength=s) for s, seed in [(0.1, 0), (0.5, 1), (0.1, 1), (0.1, 7)]]
    run = Run(
        **vars(parts[0])
        | {"seeds": tuple(part.seeds[0] for part in parts), "strengths": tuple(part.strengths[0] for part in parts)}
    )
    assert len(commands(run)) == 3
    assert set(repeated(run)) == set(by_member(run))


@pytest.mark.parametrize("value", [None, [1, 2], "4", "1e3", "nan", "-x", "true"])
def test_what_cannot_be_typed_has_no_command(value):
    assert commands(Run.of(DIGITS, "support.extensions:Free", [0], options={"anything": value})) == []


def test_what_is_true_can_be_typed():
    run = Run.of(DIGITS, "spectral", [0], options={"decoupled": True, "exponent": 4})
    assert repeated(run) == [run]


def test_what_is_no_longer_known_has_no_command():
    run = Run.of(DIGITS, "l2", [0])
    with mock.patch.dict(PROBLEMS):
        del PROBLEMS[DIGITS]
        assert commands(run) == []


def test_what_has_other_settings_is_another_versions():
    run = dataclasses.asdict(Run.of(DIGITS, "l2", [0]))
    assert report_commands.commands(run | {"new": 1}) == []


# Reinforcement learning.

SHORT = {"steps": 3_000, "random_steps": 300, "evaluate_every": 500}


@pytest.mark.parametrize("method", CONTROL_METHODS)
def test_every_method_of_control(method):
    run = control.Run.of("Pendulum-v1", method, [0], **SHORT)
    assert repeated(run) == [run]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"strength": 0.5},
        {"strength": 0.5, "actor_strength": 0.25},
        {"preset": "sb3", "replay_ratio": 2, "capacity": 5_000},
        {"change": "task", "change_every": 1_000},
        {"prime": 10, "evaluate_every": 1_000, "episodes": 2, "inside": True},
        {"options": {"target": "initial", "decoupled": True, "exponent": 3}, "exempt_heads": True},
        {"matmul_precision": "medium", "actor_strength": 0.25, "options": {"one_sided": False}},
    ],
)
def test_settings_of_control_come_back(settings):
    run = control.Run.of("cartpole-swingup", "spectral", [0], **SHORT | settings)
    assert repeated(run) == [run]


@pytest.mark.parametrize("exempt_heads", [True, False])
def test_whether_heads_are_exempt_comes_back(exempt_heads):
    run = control.Run.of("Pendulum-v1", "decoupled-spectral", [0], exempt_heads=exempt_heads, **SHORT)
    assert repeated(run) == [run]


@pytest.mark.parametrize(
    "resets", [{"every": 9_000}, {"every": 600, "unit": "steps"}, {"parts": ("actor", "buffer"), "layers": 1}]
)
def test_resets_come_back(resets):
    run = control.Run.of("Pendulum-v1", "resets", [0], resets=resets, **SHORT)
    assert repeated(run) == [run]


def test_seeds_of_control_are_trained_one_by_one():
    run = control.Run.of("Pendulum-v1", "l2", [0, 1, 7], steps=20_000)
    alike = [dataclasses.replace(run, seeds=(seed,)) for seed in (0, 1, 7)]
    assert commands(run) == [
        "supple rl Pendulum-v1 --method l2 --steps 20000 --seeds 2",
        "supple rl Pendulum-v1 --method l2 --steps 20000 --first-seed 7 --seeds 1",
    ]
    assert repeated(run) == alike


def test_seeds_of_control_on_another_device_are_one_run():
    run = control.Run.of("Pendulum-v1", "l2", [0, 1, 2], steps=20_000)
    (command,) = commands(run, "cuda")
    assert command.endswith("--device cuda --seeds 3")
    assert typed(command) == [run]


def test_constants_that_no_option_takes_have_no_command():
    assert commands(control.Run.of("Pendulum-v1", "l2", [0], steps=20_000, hidden=(64,))) == []
