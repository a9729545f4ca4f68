"""Problems and runs: names, defaults, and errors that help."""

import dataclasses
from pathlib import Path

import pytest

from supple.lab.datasets import DATASETS
from supple.lab.methods import METHODS
from supple.lab.models import MODELS
from supple.lab.problems import PROBLEMS, Run, named
from supple.lab.shifts import SHIFTS

DIGITS = "random-label-digits"


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_problems_name_what_there_is(problem):
    assert problem.dataset in DATASETS
    assert problem.shift in SHIFTS
    assert problem.model in MODELS
    assert problem.scale in ("quick", "paper")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_run_takes_the_protocol_and_the_strength(problem, method):
    run = dataclasses.asdict(Run.of(problem, method, [5, 2]))
    protocol = dataclasses.asdict(PROBLEMS[problem])
    del protocol["summary"]
    assert run == protocol | {
        "problem": problem,
        "method": method,
        "strength": METHODS[method].strength,
        "seeds": (5, 2),
    }


def test_the_digits_protocol_never_changes():
    run = dataclasses.asdict(Run.of(DIGITS, "none", [0]))
    protocol = {"tasks": 30, "epochs": 40, "batch_size": 256, "step_size": 1e-3, "scale": "quick"}
    assert run | protocol == run


def test_changes_count_and_none_does_not():
    default = Run.of(DIGITS, "spectral", range(2))
    assert Run.of(DIGITS, "spectral", range(2), strength=None, tasks=None) == default
    changed = Run.of(DIGITS, "spectral", range(2), strength=0.0, tasks=7, step_size=None)
    assert changed == dataclasses.replace(default, strength=0.0, tasks=7)


def test_runs_are_keys():
    assert len({Run.of(DIGITS, method, [seed]) for method in METHODS for seed in (0, 1, 1)}) == 2 * len(METHODS)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Run)])
def test_every_field_has_its_folder(field):
    run = Run.of(DIGITS, "none", [0])
    other = {int: 99, float: 0.5, str: "other", tuple: (0, 1)}[type(getattr(run, field))]
    changed = dataclasses.replace(run, **{field: other})
    assert changed.folder(Path("here")).path != run.folder(Path("here")).path
    assert dataclasses.replace(run).folder(Path("here")).path == run.folder(Path("here")).path


@pytest.mark.parametrize(
    ("problem", "method", "expected"),
    [
        (
            "random-lable-digits",
            "none",
            "expected a problem, got 'random-lable-digits': did you mean 'random-label-digits'?",
        ),
        (DIGITS, "spectrl", "expected a method, got 'spectrl': did you mean 'spectral'?"),
        (DIGITS, "zzz", "expected a method, got 'zzz': known are none, l2,"),
    ],
)
def test_unknown_names(problem, method, expected):
    with pytest.raises(ValueError, match=r"known are") as error:
        Run.of(problem, method, [0])
    assert str(error.value).startswith(expected)


def test_named_returns_the_entry():
    assert named("b", {"a": 1, "b": 2}, "letter") == 2
