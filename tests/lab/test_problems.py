"""Problems and runs: names, protocols, changes, and errors that help."""

import dataclasses
import json
from typing import get_args, get_type_hints

import polars as pl
import pytest

from supple.cli.options import Protocol
from supple.diagnostics import DIAGNOSTICS
from supple.lab import problems
from supple.lab.datasets import DATASETS
from supple.lab.models import MODELS
from supple.lab.problems import PROBLEMS, Problem
from supple.lab.run import Run
from supple.lab.shifts import SHIFTS
from supple.runs.tables import title_with_scale
from supple.training.methods import METHODS
from supple.training.optimizers import OPTIMIZERS

DIGITS = "random-label-digits"
USUAL_DIAGNOSTICS = (
    "spectral_norm",
    "smallest_singular_value",
    "stable_rank",
    "effective_rank",
    "weight_norm",
    "distance_from_initialization",
    "dormant_units",
    "dead_units",
    "feature_rank",
    "representation_change",
    "gradient_norm",
    "gradient_effective_rank",
)
"""In this order: the folders of runs are named after it."""
SCALES = [(name, scale) for name, problem in PROBLEMS.items() for scale in problem.scales]


@pytest.mark.parametrize(("name", "scale"), SCALES)
def test_problems_name_what_there_is(name, scale):
    run = Run.of(name, "none", [0], scale=scale)
    assert run.dataset in DATASETS
    assert run.shift in SHIFTS
    assert run.model in MODELS
    assert run.optimizer in OPTIMIZERS
    assert set(run.diagnostics) <= DIAGNOSTICS.keys()
    assert PROBLEMS[name].summary


@pytest.mark.parametrize(
    ("name", "scale", "method"),
    [(*at, "l2") for at in SCALES] + [("random-label-digits", "quick", method) for method in METHODS if method != "l2"],
)
def test_a_run_takes_the_protocol_and_the_strength(name, scale, method):
    run = dataclasses.asdict(Run.of(name, method, [5, 2], scale=scale))
    protocol = dataclasses.asdict(PROBLEMS[name])
    changes = {key: protocol.pop(key) for key in ("title", "summary", "quick", "reduced", "online", "published")}
    assert run == protocol | changes.get(scale, {}) | {
        "problem": name,
        "scale": scale,
        "method": method,
        "options": "{}",
        "matmul_precision": "highest",
        "autocast": None,
        "diagnostics": USUAL_DIAGNOSTICS,
        "seeds": (5, 2),
        "strengths": (METHODS[method].strength,) * 2,
    }


# The paper's table (App. B), one row a problem: data, shift, batch, epochs, tasks.
PUBLISHED = """
random-label-mnist               mnist         random-labels      512  40  50
random-label-fashion-mnist       fashion-mnist random-labels      512  40  50
random-label-emnist              emnist        random-labels      500 100  50
pixel-permutation-emnist         emnist        pixel-permutation  500  20 200
label-flip-emnist                emnist        label-flip         500  20 200
random-label-svhn                svhn          random-labels      500  20  25
pixel-permutation-svhn           svhn          pixel-permutation  500  10 100
random-label-cifar10             cifar10       random-labels      250  20  30
pixel-permutation-cifar10        cifar10       pixel-permutation  250  10 100
random-label-cifar100            cifar100      random-labels      250  20  30
pixel-permutation-cifar100       cifar100      pixel-permutation  250  10 100
random-label-tiny-imagenet       tiny-imagenet random-labels      250  20  30
pixel-permutation-tiny-imagenet  tiny-imagenet pixel-permutation  250  20 100
label-flip-tiny-imagenet         tiny-imagenet label-flip         250  20 100
continual-imagenet               imagenet32    class-pairs        100  10 500
permuted-mnist-kumar      mnist-60000-from-minus-1 sampled-pixel-permutation 16   1 500
random-label-mnist-kumar  mnist-60000-from-minus-1 shuffled-labels           16 400  50
online-permuted-mnist            mnist-60000-from-0 pixel-permutation    1   1 800
random-label-mnist-lillo  mnist-1200-from-0          ordered-random-labels      16 400  50
streamed-permuted-mnist   mnist-60000-from-minus-1   pixel-permutation-of-50000  1   1 300
input-permuted-mnist      mnist-60000-from-minus-1   pixel-permutation-of-5000   1   1 200
label-permuted-emnist     emnist-112800-from-minus-1 label-flip-of-2500          1   1 400
"""


@pytest.mark.parametrize("row", PUBLISHED.strip().splitlines(), ids=lambda row: row.split()[0])
def test_paper_scale_is_what_was_published(row):
    name, dataset, shift, *numbers = row.split()
    run = Run.of(name, "none", [0], scale="paper")
    assert (run.dataset, run.shift) == (dataset, shift)
    assert [run.batch_size, run.epochs, run.tasks] == [int(number) for number in numbers]
    models = {"mnist": "mlp", "fashion-mnist": "mlp", "emnist": "mlp", "imagenet32": "conv"}
    by_name = {
        "online-permuted-mnist": "mlp-3x2000-kaiming",
        "random-label-mnist-lillo": "mlp-2x100",
        "streamed-permuted-mnist": "mlp-300-150-leaky",
        "input-permuted-mnist": "mlp-300-150",
        "label-permuted-emnist": "mlp-300-150",
    }
    kumar = "mlp-2x100" if dataset == "mnist-60000-from-minus-1" else "resnet18"
    assert run.model == by_name.get(name, models.get(dataset, kumar))
    steps = {
        "permuted-mnist-kumar": ("sgd", 0.01),
        "online-permuted-mnist": ("sgd", 0.003),
        "random-label-mnist-lillo": ("adam", 1e-4),
        "streamed-permuted-mnist": ("adam", 1e-4),
        "input-permuted-mnist": ("sgd", 0.01),
        "label-permuted-emnist": ("sgd", 0.01),
    }
    assert (run.optimizer, run.step_size) == steps.get(name, ("adam", 0.001))


REDUCED = [name for name, problem in PROBLEMS.items() if {"reduced", "paper"} <= set(problem.scales)]


@pytest.mark.parametrize("name", REDUCED)
def test_a_reduced_problem_has_fewer_images_and_tasks_and_is_stamped(name):
    reduced, paper = (dataclasses.asdict(Run.of(name, "none", [0], scale=scale)) for scale in ("reduced", "paper"))
    assert (reduced["model"], paper["model"]) == ("resnet18-narrow", "resnet18")
    different = {key for key in paper if reduced[key] != paper[key]}
    assert different <= {"scale", "model", "dataset", "examples", "epochs", "tasks"}
    assert reduced["epochs"] == paper["epochs"] // (2 if reduced["shift"] == "random-labels" else 1)
    assert different >= {"scale", "tasks"}
    assert different & {"examples", "dataset"}
    assert title_with_scale(pl.DataFrame({"scale": ["reduced"], "subset": [False]}), name) == f"{name} (reduced scale)"


def test_the_command_line_has_every_scale():
    assert get_args(get_type_hints(Protocol)["scale"]) == get_args(problems.Scale)


def test_every_published_problem_is_held_against_its_source():
    rows = {row.split()[0] for row in PUBLISHED.strip().splitlines()}
    assert rows | {"class-incremental-tiny-imagenet"} == {name for name, each in PROBLEMS.items() if each.published}


def test_titles_tell_problems_apart():
    assert all(PROBLEMS[name].title == problems.title_of(name) for name in PROBLEMS)
    assert len({problem.title for problem in PROBLEMS.values()} - {""}) == len(PROBLEMS)
    assert problems.title_of("random-label-mnist") == "Random labels, MNIST"
    assert problems.title_of("support.extensions:own_problem") == "A problem of one's own"
    assert problems.title_of("lab_workers:own_problem") == "lab_workers:own_problem", "it is not here"


def test_the_digits_protocol_never_changes():
    run = dataclasses.asdict(Run.of(DIGITS, "none", [0]))
    protocol = {"tasks": 30, "epochs": 40, "batch_size": 256, "step_size": 1e-3, "scale": "quick", "examples": None}
    assert run | protocol == run


def test_changes_count_and_none_does_not():
    default = Run.of(DIGITS, "spectral", range(2))
    assert Run.of(DIGITS, "spectral", range(2), strength=None, tasks=None, options=None, diagnostics=None) == default
    changed = Run.of(DIGITS, "spectral", range(2), strength=0, tasks=7, step_size=None, dataset="mnist")
    assert changed == dataclasses.replace(default, strengths=(0.0, 0.0), tasks=7, dataset="mnist")
    options = Run.of(DIGITS, "spectral", range(2), options={"exponent": 4, "decoupled": True})
    assert options == Run.of(DIGITS, "spectral", range(2), options={"decoupled": True, "exponent": 4})
    assert json.loads(options.options) == {"decoupled": True, "exponent": 4}


def test_one_number_is_one_folder():
    runs = [Run.of(DIGITS, "l2", [0], strength=number, step_size=number) for number in (1, 1.0)]
    assert len({run.folder("here").path for run in runs}) == 1


def test_runs_are_keys():
    assert len({Run.of(DIGITS, method, [seed]) for method in METHODS for seed in (0, 1, 1)}) == 2 * len(METHODS)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Run)])
def test_every_field_has_its_folder(field):
    run = Run.of(DIGITS, "none", [0])
    other = {int: 99, float: 0.5, str: "other", tuple: (0, 1), type(None): 7}[type(getattr(run, field))]
    changed = dataclasses.replace(run, **{field: other})
    assert changed.folder("here").path != run.folder("here").path
    assert dataclasses.replace(run).folder("here").path == run.folder("here").path


def test_a_folder_keeps_its_name_without_autocast_and_comes_back_with_it():
    plain = Run.of(DIGITS, "none", [0])
    assert "autocast" not in plain.config()
    for run in (plain, dataclasses.replace(plain, autocast="bfloat16")):
        assert Run.of_config(json.loads(json.dumps(run.config()))) == run
    assert Run.of_config({**plain.config(), "unknown": 1}) is None


@pytest.mark.parametrize(
    ("problem", "method", "changes", "expected"),
    [
        (
            "random-lable-digits",
            "none",
            {},
            "expected a problem or package.module:function, got 'random-lable-digits': did",
        ),
        (DIGITS, "spectrl", {}, "expected a method or package.module:Class, got 'spectrl': did you mean 'spectral'?"),
        (DIGITS, "zzz", {}, "expected a method or package.module:Class, got 'zzz': known are none, l2,"),
        (
            DIGITS,
            "none",
            {"scale": "paper"},
            "expected random-label-digits at scale quick, got paper: choose",
        ),
        (DIGITS, "l2", {"strength": -1}, "expected a strength of l2 of at least 0, got -1"),
        (DIGITS, "none", {"strength": 0.5}, "expected no strength for none, which has none, got 0.5: leave it out"),
        (DIGITS, "l2", {"strength": float("nan")}, "expected a strength of l2 of at least 0, got nan"),
        (DIGITS, "spectral", {"options": {"exponent": "abc"}}, "expected exponent of spectral to be like 2, got 'abc'"),
        (DIGITS, "spectral", {"options": {"decoupled": "yes"}}, "expected decoupled of spectral to be like False"),
        (
            DIGITS,
            "support.extensions:Bare",
            {},
            "expected a strength for support.extensions:Bare, which has no default",
        ),
        (
            DIGITS,
            "support.extensions:Dialless",
            {},
            "expected a class that takes a network and a strength, got support.extensions:D",
        ),
        (DIGITS, "upgd", {"strength": 1.5}, "expected a strength of upgd from 0 to 1.0, got 1.5"),
        (DIGITS, "none", {"tasks": 0}, "expected tasks as a whole number of at least 1, got 0"),
        (DIGITS, "none", {"epochs": 0}, "expected epochs as a whole number of at least 1, got 0"),
        (DIGITS, "none", {"diagnostics": ["dead"]}, "expected a diagnostic, got 'dead': "),
        (DIGITS, "none", {"batch_size": 0}, "expected images a batch as a whole number of at least 1, got 0"),
        (DIGITS, "none", {"step_size": -0.1}, "expected a positive step size, got -0.1"),
        (DIGITS, "none", {"step_size": float("inf")}, "expected a positive step size, got inf"),
        (
            DIGITS,
            "spectral",
            {"options": {"exponnet": 4}},
            "expected a keyword of spectral, got 'exponnet': did you mean",
        ),
        (
            DIGITS,
            "none",
            {"matmul_precision": "midium"},
            "expected a precision, got 'midium': did you mean 'medium'?",
        ),
        (
            DIGITS,
            "none",
            {"autocast": "float16"},
            "expected a type for autocast, got 'float16': did you mean 'bfloat16'",
        ),
        (DIGITS, "none", {"optimizer": "adma"}, "expected an optimizer, got 'adma': did you mean 'adam'?"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_wrong_is_said(problem, method, changes, expected):
    with pytest.raises(ValueError, match="expected") as error:
        Run.of(problem, method, [0], **changes)
    assert str(error.value).startswith(expected)


def test_no_seed():
    with pytest.raises(ValueError, match="expected at least one seed, got none"):
        Run.of(DIGITS, "none", [])


def test_a_setting_that_no_run_has_is_named(monkeypatch):
    own = dataclasses.replace(problems.find(DIGITS), quick={"epoch": 1})
    monkeypatch.setitem(problems.PROBLEMS, "own", own)
    with pytest.raises(ValueError, match=r"expected a setting of own, got 'epoch'.*epochs"):
        Run.of("own", "none", [0])


def test_a_problem_of_ones_own():
    own = problems.find("support.extensions:own_problem")
    assert isinstance(own, Problem)
    run = Run.of("support.extensions:own_problem", "none", [0])
    assert (run.problem, run.tasks, run.batch_size) == ("support.extensions:own_problem", 3, 32)
    assert "/" not in run.folder("here").name
