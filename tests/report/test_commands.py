"""The command that repeats a run, read back by the command line itself."""

import itertools
import shlex
from unittest import mock

import pytest
import tyro
from hypothesis import given, settings
from hypothesis import strategies as st

from supple.cli import COMMANDS
from supple.lab.grid import alone
from supple.lab.problems import PROBLEMS
from supple.lab.run import Run
from supple.report.commands import commands
from supple.training.methods import METHODS

DIGITS = "random-label-digits"


def typed(command):
    """The members that the command trains."""
    name, *arguments = shlex.split(command)
    assert name == "supple"
    return tyro.extras.subcommand_cli_from_dict(COMMANDS, args=arguments).members()


def repeated(run):
    return list(itertools.chain(*map(typed, commands(run))))


@pytest.mark.parametrize("problem", PROBLEMS)
def test_every_problem_and_scale(problem):
    for scale in PROBLEMS[problem].scales:
        run = Run.of(problem, "spectral", range(3), scale=scale)
        assert repeated(run) == alone(run)


@pytest.mark.parametrize("method", METHODS)
def test_every_method(method):
    run = Run.of(DIGITS, method, [0], strength=METHODS[method].strength / 3)
    assert repeated(run) == alone(run)


strengths = st.floats(1e-9, 1e3)
words = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1).map("a".__add__)
numbers = st.integers(-(10**6), 10**6) | st.floats(allow_nan=False, allow_infinity=False)


@settings(deadline=None)  # a first call imports, and machines are loaded
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
    assert typed(command) == alone(run)


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
    assert set(repeated(run)) == set(alone(run))


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
