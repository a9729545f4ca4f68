"""The commands as they are typed: what they print, what they leave, and how they fail."""

import dataclasses
import errno
import itertools
import os
import re
import signal
import subprocess
import sys
from importlib import metadata
from unittest.mock import Mock

import pytest
from fsspec.registry import known_implementations

from supple import cli, figures
from supple.cli.output import choices, print_tables
from supple.errors import LostWorkersError
from supple.lab.datasets import DATASETS
from supple.lab.grid import TUNING_SEEDS, by_member
from supple.lab.models import MODELS
from supple.lab.problems import PROBLEMS
from supple.lab.run import Run
from supple.lab.shifts import SHIFTS
from supple.rl.run import Run as ControlRun
from supple.runs import cluster, sweep
from supple.runs.store import load
from supple.training.methods import METHODS
from supple.training.optimizers import OPTIMIZERS
from support.stores import plausible, store

DIGITS = "random-label-digits"


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "220")


@pytest.fixture
def supple(monkeypatch):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["supple", *map(str, arguments)])
        cli.main()

    return call


@pytest.fixture
def jobs(monkeypatch):
    """Short tasks, in this process; the runs that were trained."""
    done = []

    def work_through(jobs, work, *, workers, threads, report):
        for job in jobs:
            while work(job, lambda tasks, job=job: report(job, tasks)):
                pass
            done.append(job)

    monkeypatch.setattr(sweep, "work_through", work_through)
    short = {"epochs": 2, "tasks": 2, "model": "mlp-2x100"}
    monkeypatch.setitem(PROBLEMS, DIGITS, dataclasses.replace(PROBLEMS[DIGITS], **short))
    return done


def accuracies(out):
    """Of training, by method, strength and seed, over the tasks."""
    rows = load(str(out)).filter(metric="train_accuracy").sort("task")
    found = {}
    for row in rows.to_dicts():
        found.setdefault((row["method"], row["strength"], row["seed"]), []).append(row["value"])
    return found


def table(output):
    """Of the first table: the method's title to the other cells."""
    lines = itertools.takewhile(str.strip, output[output.index(" method ") :].splitlines()[2:])
    rows = [re.split(r"\s{2,}", line.strip()) for line in lines]
    return {row[0]: row[1:] for row in rows}


def test_list_names_everything(supple, capsys):
    supple("list")
    output = capsys.readouterr().out
    found = {cells[0]: cells[1:] for line in output.splitlines() for cells in [re.split(r"\s{2,}", line.strip())]}
    for name, problem in PROBLEMS.items():
        tasks = ", ".join(f"{problem.protocol(scale)['tasks']} {scale}" for scale in problem.scales)
        assert found[name] == [f"{problem.title}: {problem.summary}; {tasks}"]
    for name, method in METHODS.items():
        strength, told = found[name]
        assert strength == (f"{method.strength:g}" if method.strength else "-")
        assert told.startswith(f"{method.title}: {method.summary}")
    for number, content in figures.contents().items():
        assert found[str(number)] == [content]
    for kind, names in (("data", DATASETS), ("shift", SHIFTS), ("model", MODELS), ("optimizer", OPTIMIZERS)):
        assert found[f"--{kind}"][0].split(", ")[0] == next(iter(names))
        assert all(name in output for name in names)


def test_list_tells_a_methods_options(supple, capsys):
    supple("list", "methods")
    output = capsys.readouterr().out
    for line in (
        r"hare-and-tortoise +1 .*; supple.HareAndTortoise: decay 0.999, every 1000",
        r"shrink-and-perturb .*; supple.ShrinkAndPerturb: perturb left out, variant step-fresh",
        r"l2 .*parameters towards zero",  # it has none
    ):
        assert re.search(rf"^ {line} *$", output, re.MULTILINE)
    assert "random-label-digits" not in output


def test_run_trains_in_processes_of_its_own(supple, tmp_path, capsys):
    supple("run", DIGITS, "--method", "none", "--tasks", 1, "--seeds", 1, "--out", tmp_path, "--workers", 1)
    ((accuracy,),) = accuracies(tmp_path).values()
    assert accuracy > 0.3  # of random labels, of which 0.1 are right by chance
    shown = f"{accuracy:.3f}"
    assert table(capsys.readouterr().out) == {"no mitigation": ["-", shown, shown, "1"]}


def test_two_methods_side_by_side(supple, jobs, tmp_path, capsys):
    supple("demo", "--methods", "none", "spectral", "--seeds", 2, "--out", tmp_path)
    assert {member for job in jobs for member in by_member(job)} == {
        Run.of(DIGITS, method, [seed]) for method in ("none", "spectral") for seed in (0, 1)
    }
    output, measured = capsys.readouterr().out, accuracies(tmp_path)
    assert "Training accuracy: Random labels, digits (quick scale)" in output
    found = table(output)
    assert found.keys() == {"no mitigation", "spectral"}
    means = {}
    for title, cells in found.items():
        method = {"no mitigation": "none"}.get(title, title)
        strength = METHODS[method].strength
        (a0, a1), (b0, b1) = (measured[method, strength, seed] for seed in (0, 1))
        a, b = a1, b1  # of two tasks the first is left out
        means[title] = (a + b) / 2
        assert cells == [
            f"{strength:g}" if strength else "-",
            f"{(a0 + b0) / 2:.3f}",
            f"{means[title]:.3f} ± {abs(a - b) / 2:.3f}",
            "2",
        ]
    assert list(found) == sorted(means, key=means.get, reverse=True)
    charts = [*tmp_path.glob("chart-random-label-digits-*")]
    assert {path.suffix for path in charts} == {".svg", ".png", ".html", ".pdf"}
    for path in charts:
        assert path.stat().st_size > 0
        assert str(path) in output
    assert "progress: 100% of 2 runs" in output
    assert f"next:  supple report {tmp_path}" in output


OPTIONS = {
    "strength": 0.25,
    "step_size": 0.002,
    "tasks": 1,
    "epochs": 1,
    "batch_size": 64,
    "examples": 200,
    "shift": "label-flip",
    "model": "mlp-layer-norm",
    "optimizer": "muon",
    "option": "exponent 4",
}


def test_options_reach_the_runs(supple, jobs, tmp_path):
    typed = [part for name, value in OPTIONS.items() for part in (f"--{name.replace('_', '-')}", *str(value).split())]
    typed += ["--keep-checkpoints", "1"]
    supple("run", DIGITS, "--method", "spectral", "--data", "digits", "--seeds", 2, *typed, "--out", tmp_path)
    changes = {name: value for name, value in OPTIONS.items() if name != "option"}
    expected = Run.of(DIGITS, "spectral", (0, 1), dataset="digits", options={"exponent": 4}, **changes)
    assert [member for job in jobs for member in by_member(job)] == by_member(expected)
    assert [*tmp_path.glob("*/checkpoint-after-1.pt")]


def test_engine_options_reach_the_engine(supple, monkeypatch, tmp_path):
    told = {}

    def engine(name):
        def work_through(jobs, work, *, report, **options):
            told[name] = options
            for job in jobs:
                while work(job, lambda tasks: None):
                    pass

        return work_through

    monkeypatch.setattr(sweep, "available_cores", lambda: 4)
    monkeypatch.setattr(cluster, "check", lambda gpus, address: None)
    monkeypatch.setattr(sweep, "work_through", engine("local"))
    monkeypatch.setattr(cluster, "work_through", engine("ray"))
    short = ("run", DIGITS, "--tasks", 1, "--epochs", 1, "--examples", 300, "--seeds", 1)
    supple(*short, "--workers", 3, "--threads", 2, "--out", tmp_path / "local")
    remote = ("--engine", "ray", "--address", "auto", "--gpus", 0.25)
    supple(*short, *remote, "--out", tmp_path / "ray")
    assert told == {
        "local": {"workers": 3, "threads": 2},
        "ray": {"workers": None, "threads": 1, "gpus": 0.25, "address": "auto"},
    }


def test_what_is_there_is_not_trained_again(supple, jobs, tmp_path, capsys):
    command = ("demo", "--methods", "none", "l2", "--seeds", 1, "--out", tmp_path)
    supple(*command)
    first = table(capsys.readouterr().out)
    assert len(jobs) == 2
    charts = {path: path.read_bytes() for path in tmp_path.glob("chart-*.png")}
    supple(*command)
    assert len(jobs) == 2
    output = capsys.readouterr().out
    assert f"2 of 2 already done in {tmp_path}\n" in output
    assert table(output) == first
    supple("demo", "--methods", "spectral", "--seeds", 1, "--out", tmp_path)
    assert len(jobs) == 3
    assert list(table(capsys.readouterr().out)) == ["spectral"]  # and not what else is in the folder
    assert len([*tmp_path.glob("chart-*.png")]) == 2
    assert all(path.read_bytes() == content for path, content in charts.items())


def test_a_sweep_trains_only_what_is_missing(supple, jobs, tmp_path, capsys):
    command = ("sweep", DIGITS, "--methods", "none", "l2", "--strengths", 1e-2, 1e-3, "--out", tmp_path)
    supple(*command, "--seeds", 1)
    assert {(run.method, run.strengths[0]) for job in jobs for run in by_member(job)} == {
        ("none", 0.0),
        ("l2", 1e-2),
        ("l2", 1e-3),
    }
    jobs.clear()
    supple(*command, "--seeds", 1)
    assert jobs == []
    supple(*command, "--seeds", 2)
    assert {run.seeds for job in jobs for run in by_member(job)} == {(1,)}
    jobs.clear()
    supple(*command, "--seeds", 2, "--step-sizes", 1e-3, 1e-2)
    assert {run.step_size for job in jobs for run in by_member(job)} == {1e-2}
    output = capsys.readouterr().out
    assert len([line for line in output[output.rindex("Training accuracy") :].splitlines() if " L2 " in line]) == 4
    assert "choose it on other seeds, --tuning-seeds 2" in output


def test_tuning_chooses_on_seeds_that_are_not_reported(supple, jobs, tmp_path, capsys):
    choice = ("--methods", "none", "l2", "--strengths", 1e-4, 10, "--seeds", 2, "--tuning-seeds", 1)
    supple("sweep", DIGITS, *choice, "--out", tmp_path)
    trained = {(run.method, run.strengths[0], run.seeds[0]) for job in jobs for run in by_member(job)}
    tried = {("none", 0.0), ("l2", 1e-4), ("l2", 10.0)}
    measured = accuracies(tmp_path)
    best = max((1e-4, 10.0), key=lambda strength: sum(measured["l2", strength, TUNING_SEEDS]))
    assert best == 1e-4  # at 10 nothing is learned
    assert trained == {(*setting, TUNING_SEEDS) for setting in tried} | {
        (*setting, seed) for setting in (("none", 0.0), ("l2", best)) for seed in (0, 1)
    }
    output = capsys.readouterr().out
    assert (
        "chosen for l2: strength 0.0001 (the smallest tried: try smaller ones too)\nnow training the seeds to report"
        in output
    )
    assert output.count("next:") == 1
    assert table(output[output.rindex("Training accuracy") :]).keys() == {"no mitigation", "L2"}
    assert [*tmp_path.glob(f"tuning-{DIGITS}-*.png")]
    assert [*tmp_path.glob(f"chart-{DIGITS}-*.png")]


def test_results_of_everything_in_a_folder(supple, jobs, tmp_path, capsys):
    for problem_options in ((), ("--shift", "label-flip")):
        supple("run", DIGITS, "--method", "l2", "--seeds", 1, *problem_options, "--out", tmp_path)
    capsys.readouterr()
    supple("results", tmp_path)
    output = capsys.readouterr().out
    assert "shift" in output
    assert all(name in output for name in ("random-labels", "label-flip"))
    supple("results", tmp_path, "--metric", "weight_norm")
    assert "norm of all parameters" in capsys.readouterr().out.lower()


def test_results_leave_out_what_was_chosen_by(supple, tmp_path, capsys):
    seeds = {"reported": range(2), "tuning": range(TUNING_SEEDS, TUNING_SEEDS + 3)}
    for part, values in {"tuning": ["tuning"], "both": seeds}.items():
        runs = [Run.of(DIGITS, "none", [seed]) for each in values for seed in seeds[each]]
        store(tmp_path / part, runs, ["train_accuracy"], plausible)
        supple("results", tmp_path / part)
        output = capsys.readouterr().out
        assert output.split()[-1] == str(2 if part == "both" else 3), "so many seeds"
        assert output.startswith(
            "Tuning: Training accuracy: Random" if part == "tuning" else "Training accuracy: Random"
        )
    other = [Run.of("random-label-mnist", "none", [TUNING_SEEDS + seed]) for seed in range(4)]
    store(tmp_path / "both", other, ["train_accuracy"], plausible)
    supple("results", tmp_path / "both")
    counts = [line.split()[-1] for line in capsys.readouterr().out.splitlines() if line.startswith(" no mitigation")]
    assert sorted(counts) == ["2", "4"], "each problem for itself"


def test_results_leave_out_what_is_not_at_its_end_and_say_so(supple, tmp_path, capsys):
    store(tmp_path, [Run.of(DIGITS, "none", [0, 1], tasks=8)], ["train_accuracy"], plausible)
    store(tmp_path, [Run.of(DIGITS, "none", [2], tasks=8)], ["train_accuracy"], plausible, done=7)
    store(tmp_path, [Run.of(DIGITS, "l2", [0], tasks=8)], ["train_accuracy"], plausible, done=2)
    supple("results", tmp_path)
    output = capsys.readouterr().out
    assert {method: cells[-1] for method, cells in table(output).items()} == {"no mitigation": "2"}
    assert "2 of 4 networks on Random labels, digits have not finished and are left out" in output
    assert f"supple report {tmp_path}" in output


def test_results_of_what_has_only_begun(supple, tmp_path, capsys):
    store(tmp_path, [Run.of(DIGITS, "l2", [0], tasks=8)], ["train_accuracy"], plausible, done=2)
    for metric in ((), ("--metric", "train_accuracy")):
        supple("results", tmp_path, *metric)
        assert capsys.readouterr().out.startswith("1 of 1 networks on")


def test_results_of_several_sweeps_have_one_chart(supple, tmp_path, capsys):
    store(tmp_path, [Run.of(DIGITS, method, range(2)) for method in ("none", "l2")], ["train_accuracy"], plausible)
    agents = ControlRun.of("Pendulum-v1", "none", [0], steps=400, random_steps=10, evaluate_every=100)
    store(tmp_path, [agents], ["return"], lambda run, member, task, metric: float(task), done=agents.evaluations)
    supple("results", tmp_path, "--chart")
    output = capsys.readouterr().out
    for name, words in (("results-random-label-digits-quick", "L2"), ("results-Pendulum-v1-quick", "steps of the")):
        assert f"chart: {tmp_path / name}.png" in output
        assert words in (tmp_path / f"{name}.svg").read_text()
    supple("results", tmp_path, "--chart", "--metric", "return")
    assert f"chart: {tmp_path / 'results-Pendulum-v1-quick-return'}.png" in capsys.readouterr().out


def test_a_chart_says_how_many_seeds_its_lines_have_and_options_that_all_have(supple, tmp_path):
    target = {"options": {"target": "initial"}}
    runs = [
        Run.of(DIGITS, "spectral", range(seeds), strength=strength, **target) for strength, seeds in ((1, 2), (2, 3))
    ]
    store(tmp_path, runs, ["train_accuracy"], plausible)
    supple("results", tmp_path, "--chart")
    svg = (tmp_path / f"results-{DIGITS}-quick.svg").read_text()
    assert "over 2 to 3 seeds" in svg
    assert "target: initial" in svg


def test_agents_of_different_settings_have_lines_of_their_own(supple, tmp_path, capsys):
    few = {"steps": 400, "random_steps": 10, "evaluate_every": 100}
    runs = [ControlRun.of("dm_control/a:B-v0", "none", [0], replay_ratio=ratio, **few) for ratio in (1, 2)]
    store(tmp_path, runs, ["return"], lambda run, member, task, metric: run.constants.replay_ratio, done=4)
    supple("results", tmp_path, "--chart")
    assert f"chart: {tmp_path / 'results-dm_control-a-B-v0-quick'}.png" in capsys.readouterr().out
    svg = (tmp_path / "results-dm_control-a-B-v0-quick.svg").read_text()
    assert "replay ratio" in svg, "dashes tell them apart"


def test_a_metric_of_tuning_seeds_alone_has_no_results(supple, tmp_path):
    for seed, metrics in {0: ["train_accuracy"], TUNING_SEEDS: ["train_accuracy", "weight_norm"]}.items():
        store(tmp_path, [Run.of(DIGITS, "none", [seed])], metrics, plausible)
    with pytest.raises(SystemExit, match="expected a metric, got 'weight_norm': known are train_accuracy"):
        supple("results", tmp_path, "--metric", "weight_norm")


def test_tuning_of_another_protocol_does_not_vanish(supple, tmp_path, capsys):
    runs = [Run.of(DIGITS, "none", [0]), Run.of(DIGITS, "none", [TUNING_SEEDS])]
    other = Run.of(DIGITS, "l2", [TUNING_SEEDS], batch_size=64)
    store(tmp_path, [*runs, other], ["train_accuracy"], plausible)
    supple("results", tmp_path)
    output = capsys.readouterr().out
    assert "L2" in output
    assert output.count("no mitigation") == 1, "that of the tuning seed is not reported"


def test_tables_fit_80_columns(supple, tmp_path, capsys, monkeypatch):
    """Names in a first column wrap at their spaces; what is typed, and every number, stays whole."""
    monkeypatch.setenv("COLUMNS", "80")
    methods = ("none", "self-normalized-resets", "normalize-and-project")
    store(tmp_path, [Run.of(DIGITS, method, range(2)) for method in methods], ["train_accuracy"], plausible)
    supple("results", tmp_path)
    results = capsys.readouterr().out
    supple("list")
    listed = capsys.readouterr().out
    assert all(len(line) <= 80 for line in (results + listed).splitlines())
    assert "…" not in results + listed
    assert len(re.findall(r"0\.\d{3} ± 0\.\d{3} +2 *$", results, re.MULTILINE)) == 3
    words = listed.split()
    assert all(name in words for names in (PROBLEMS, METHODS) for name in names)


def test_results_are_whole_where_there_is_little_room(supple, tmp_path, capsys, monkeypatch):
    """As where they go to a file, which counts as 80 columns."""
    changes = [{"step_size": size, "batch_size": batch} for size in (1e-3, 5e-4) for batch in (64, 128)]
    store(tmp_path, [Run.of(DIGITS, "spectral", range(2), **each) for each in changes], ["train_accuracy"], plausible)
    printed = []
    for columns in ("200", "60"):
        monkeypatch.setenv("COLUMNS", columns)
        supple("results", tmp_path)
        printed.append([line.split() for line in capsys.readouterr().out.splitlines()[1:]])
    assert [line for line in printed[1] if line] == [line for line in printed[0] if line]
    assert sum(line[:1] == ["spectral"] for line in printed[1]) == 4


def test_paths_are_printed_as_they_are(supple, jobs, tmp_path, capsys):
    out = tmp_path / "[old] :cat:"
    supple("demo", "--methods", "none", "--seeds", 1, "--out", out)
    (chart,) = out.glob("chart-*.svg")
    assert f"chart: {chart}\n" in capsys.readouterr().out


def test_a_damaged_folder_still_has_results(supple, jobs, tmp_path, capsys):
    for method in ("none", "l2"):
        supple("run", DIGITS, "--method", method, "--seeds", 1, "--out", tmp_path)
    next(tmp_path.glob("*-l2-*/metrics.parquet")).write_bytes(b"half")
    capsys.readouterr()
    with pytest.warns(UserWarning, match="its metrics.parquet can't be read"):
        supple("results", tmp_path)
    assert table(capsys.readouterr().out).keys() == {"no mitigation"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("run", "random-lable-digits"), "did you mean 'random-label-digits'?"),
        (("run", DIGITS, "--method", "spectrl"), "did you mean 'spectral'?"),
        (("demo", "--methods", "none", "l2init"), "did you mean 'l2-init'?"),
        (("run", DIGITS, "--strength", -1), "strength"),
        (("run", DIGITS, "--keep-checkpoints", 0), "--keep-checkpoints of at least 1, got 0"),
        (("run", DIGITS, "--scale", "paper"), "scale quick"),
        (("run", DIGITS, "--model", "mpl"), "did you mean 'mlp'?"),
        (("run", DIGITS, "--shift", "label-flop"), "did you mean 'label-flip'?"),
        (("run", DIGITS, "--data", "digit"), "did you mean 'digits'?"),
        (("run", DIGITS, "--optimizer", "adma"), "did you mean 'adam'?"),
        (("run", DIGITS, "--option", "exponnet", 4), "did you mean 'exponent'?"),
        (("run", DIGITS, "--examples", 5000), "1797 training examples, got 5000"),
        (("run", DIGITS, "--batch-size", 0), "images a batch"),
        (("run", DIGITS, "--shift", "class-incremental", "--tasks", 3), "at most 2 tasks"),
        (("sweep", DIGITS, "--methods", "none", "l2", "--strengths", "nan"), "strength"),
        (("sweep", DIGITS, "--step-sizes", -1), "step size"),
        (("sweep", DIGITS, "--seeds", 0), "seed"),
        (("run", DIGITS, "--tasks", 0), "task"),
        (("run", DIGITS, "--seeds", 0), "seed"),
        (("demo", "--seeds", 0), "seed"),
        (("figure", 4, "--seeds", 0), "seed"),
        (("run", DIGITS, "--threads", 0), "1 to 2 threads"),
        (("run", DIGITS, "--threads", 100_000), "1 to 2 threads"),
        (("run", DIGITS, "--workers", 0), "1 to 2 workers"),
        (("figure", 6, "--workers", 100_000), "1 to 2 workers"),
        (("run", DIGITS, "--gpus", 1), "--engine ray"),
        (("run", DIGITS, "--engine", "ray", "--gpus", "nan"), "a share of a GPU"),
        (("run", DIGITS, "--engine", "ray", "--gpus", 1.5), "a share of a GPU"),
        (("run", DIGITS, "--engine", "ray", "--address", "auto", "--workers", 2), "no --workers with --address, got 2"),
        (("run", DIGITS, "--first-seed", -1), "seeds from 0"),
        (("run", DIGITS, "--first-seed", 2**64), "seeds from 0"),
        (("demo", "--seeds", 10**9), "at most 1000 seeds"),
        (("run", DIGITS, "--batch-size", 5000), "a batch of at most 1797 images"),
        (("run", DIGITS, "--examples", -5), "1797 training examples, got -5"),
        (("run", DIGITS, "--method", "none", "--strength", 1), "methods with a strength, got none"),
        (
            ("sweep", DIGITS, "--methods", "none", "layer-norm", "--strengths", 1),
            "methods with a strength, got none",
        ),
        (("run", DIGITS, "--option", "power_iterations", 1.5), "power_iterations of spectral to be like 1, got 1.5"),
        (("run", DIGITS, "--option", "exponent", "true"), "exponent of spectral to be like 2, got True"),
        (("run", DIGITS, "--option", "roles", 3), "roles of spectral to be left out, got 3"),
        (("run", DIGITS, "--option", "exponent", 0), "at least 1, got 0"),
        (("run", DIGITS, "--tensorboard", "/proc/events"), "a folder or an address to write to"),
        (("run", "support.mistakes:nothing"), "a Problem from support.mistakes:nothing, got NoneType"),
        (("run", "support.mistakes:broken"), "mistakes.py:13 (broken), got KeyError: 'my own mistake': correct it"),
        (("run", "support.mistakes:leaves"), "mistakes.py:17 (leaves), got SystemExit: correct it"),
        (("run", "support.mistakes:needs_more"), "a function that needs no arguments"),
        (("run", DIGITS, "--data", "support.mistakes:needs_more"), "a function that needs no arguments"),
        (
            ("run", DIGITS, "--model", "support.mistakes:nothing"),
            "a network from support.mistakes:nothing, got No",
        ),
        (("run", DIGITS, "--model", "support.mistakes:without_parameters"), "parameters to train"),
        (("run", DIGITS, "--model", "support.mistakes:with_three_outputs"), "logits (2, 10) from support.m"),
        (
            ("run", DIGITS, "--model", "support.mistakes:for_other_images"),
            "mistakes:for_other_images to work on",
        ),
        (("run", DIGITS, "--model", "support.mistakes:needs_more"), "support.mistakes:needs_more to work on"),
        (("run", DIGITS, "--method", "support.mistakes:no_method"), "a Mitigator from support.mistakes:no_method"),
        (("run", DIGITS, "--method", "support.mistakes:Broken"), "(change_parameters), got KeyError"),
        (("run", DIGITS, "--shift", "support.mistakes:nothing"), "a Task from the shift support.mistakes:nothing"),
        (("run", DIGITS, "--shift", "support.mistakes:beyond_the_classes"), "labels from 0 to 9 from the shift"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_errors_are_one_line(arguments, expected, supple, jobs, tmp_path, monkeypatch):
    """Found before anything is written."""
    monkeypatch.setattr(sweep, "available_cores", lambda: 2)
    store(tmp_path, [Run.of(DIGITS, "none", [0])], ["train_accuracy"], plausible)  # the folder is not empty
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as error:
        supple(*arguments, "--out", tmp_path)
    message = error.value.code
    assert message.startswith("supple: expected ")
    assert expected in message
    assert "\n" not in message
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("command", [("run", DIGITS), ("figure", 6)], ids=["run", "figure"])
@pytest.mark.parametrize(
    ("out", "expected"),
    [
        ("{file}", "write to, got '{file}' (Not a directory)"),
        ("{file}/below", "write to, got '{file}/below' (Not a directory)"),
        ("{pipe}", "write to, got '{pipe}' (Not a directory)"),
        ("memory://runs", "write to, got 'memory://runs' (other processes cannot read this one's memory)"),
        ("nothing://runs", "that fsspec opens, got 'nothing://runs' (Protocol not known: nothing)"),
        ("missing://runs", "that fsspec opens, got 'missing://runs' (Install missingfs)"),
    ],
)
def test_outputs_that_can_not_be_written(command, out, expected, supple, jobs, tmp_path, monkeypatch):
    entry = {"class": "missingfs.FileSystem", "err": "Install missingfs"}
    monkeypatch.setitem(known_implementations, "missing", entry)
    names = {"file": tmp_path / "file", "pipe": tmp_path / "pipe"}
    names["file"].write_text("mine")
    os.mkfifo(names["pipe"])
    with pytest.raises(SystemExit) as error:
        supple(*command, "--out", out.format(**names))
    assert expected.format(**names) in error.value.code
    assert {path.name for path in tmp_path.iterdir()} == {"file", "pipe"}
    assert names["file"].read_text() == "mine"
    assert names["pipe"].is_fifo()


def test_a_page_never_replaces_what_is_no_file(supple, tmp_path):
    runs, pipe = tmp_path / "runs", tmp_path / "pipe"
    runs.mkdir()
    os.mkfifo(pipe)
    with pytest.raises(SystemExit, match=f"expected a file to write, got {pipe}, which is something else"):
        supple("report", runs, "--out", pipe)
    assert pipe.is_fifo()


def test_a_fault_says_where_it_is_and_with_an_option_all_of_it(supple, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "available_cores", Mock(side_effect=KeyError("fault")))
    for option in ((), ("--traceback",)):
        with pytest.raises(SystemExit, match=r"^supple: expected no error in .*sweep\.py:\d+ .*: report it with"):
            supple("run", DIGITS, *option)
        assert ("Traceback (most recent call last)" in capsys.readouterr().err) == bool(option)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_stopped_by_hand(command, supple, monkeypatch, capsys):
    """The line says what is kept, and the status is that of a program that Ctrl-C has ended."""

    def stop(*_):
        raise KeyboardInterrupt

    ignored = []
    monkeypatch.setattr(cli.signal, "signal", lambda *change: ignored.append(change))
    monkeypatch.setattr(cli.COMMANDS[command], "__call__", stop)
    needed = {"run": [DIGITS], "sweep": [DIGITS], "figure": [4], "rl": ["cheetah-run"], "test": ["runs/it"]}
    with pytest.raises(SystemExit) as stopped:
        supple(command, *needed.get(command, []))
    assert stopped.value.code == 130
    trains = command in ("demo", "run", "sweep", "figure", "rl")
    kept = "finished tasks are kept in runs" if trains else "no file is incomplete"
    output = capsys.readouterr()
    assert output.err.startswith(f"supple: stopped: {kept}")
    assert output.err.count("\n") == 1
    assert output.out == ""
    assert ignored == [(signal.SIGINT, signal.SIG_IGN)]


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), LostWorkersError("expected workers to live, but 4 died")],
)
def test_what_happens_to_a_machine_is_one_line_too(error, supple, monkeypatch, tmp_path):
    monkeypatch.setattr(sweep, "work_through", Mock(side_effect=error))
    with pytest.raises(SystemExit) as stopped:
        supple("run", DIGITS, "--out", tmp_path)
    assert stopped.value.code == f"supple: {error}"


@pytest.mark.parametrize("writes", [cli.List.__call__, lambda _: print("a line")])
def test_a_reader_that_has_enough_gets_no_error(writes, supple, monkeypatch, capsys):
    """As in ``supple list | head``."""
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(cli.List, "__call__", writes)
    with open(writer, "w") as unread:
        monkeypatch.setattr(sys, "stdout", unread)
        with pytest.raises(SystemExit) as ended:
            supple("list")
    assert ended.value.code == 1
    assert capsys.readouterr().err == ""


def test_results_of_nothing(supple, tmp_path):
    with pytest.raises(SystemExit) as error:
        supple("results", tmp_path)
    assert error.value.code.startswith(f"supple: expected runs with a finished task in {tmp_path}, found none")


def test_an_unknown_metric(supple, jobs, tmp_path):
    supple("run", DIGITS, "--method", "none", "--seeds", 1, "--out", tmp_path)
    with pytest.raises(SystemExit) as error:
        supple("results", tmp_path, "--metric", "train_acuracy")
    assert "did you mean 'train_accuracy'?" in error.value.code


def test_an_error_is_printed_without_a_traceback():
    result = in_python("from supple.cli import main; main()", "run", "nothing")
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("supple: expected a problem or package.module:function, got 'nothing'")
    assert result.stderr.count("\n") == 1


SHOWN_AS = {
    ("run", "problem"): "A name from `supple list`",
    ("sweep", "problem"): "A name from `supple list`",
    ("figure", "number"): "5: returns of soft actor-critic",
    ("results", "runs"): "The `--out` folder",
    ("report", "runs"): "The `--out` folder",
    ("test", "run"): "The folder of a run",
    ("rl", "task"): "A task of the DeepMind Control Suite",
    ("rl", "methods"): "--method ",
    ("list", "kind"): "Show only this table",
}


@pytest.mark.parametrize(("command", "options"), cli.COMMANDS.items(), ids=cli.COMMANDS)
def test_help_names_every_option(command, options, supple, capsys):
    with pytest.raises(SystemExit) as exit_:
        supple(command, "--help")
    output = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert exit_.value.code == 0
    assert options.__doc__.splitlines()[0] in output
    for field in dataclasses.fields(options):
        assert SHOWN_AS.get((command, field.name), f"--{field.name.replace('_', '-')}") in output


def test_a_wrong_option_shows_only_this_command(supple, capsys):
    with pytest.raises(SystemExit):
        supple("run", DIGITS, "--methd", "none")
    output = capsys.readouterr().err
    assert "--method NAME" in output
    assert "supple run --help" in output
    assert "sweep" not in output


@pytest.mark.parametrize(
    ("command", "once", "again"),
    [
        ("demo", "--method", "--methods"),
        ("sweep", "--strength", "--strengths"),
        ("sweep", "--step-size", "--step-sizes"),
        ("sweep", "--batch-size", "--batch_size"),
    ],
)
def test_a_repeated_option_loses_no_value(command, once, again, supple):
    with pytest.raises(SystemExit, match=f"expected {once} once, got it again: give all its values after one"):
        supple(command, once, "1", f"{again}=2")


@pytest.mark.parametrize("option", ["--method", "--methods"])
def test_methods_have_two_spellings(option, monkeypatch):
    given = []
    for command in (cli.Demo, cli.Sweep):
        monkeypatch.setattr(command, "__call__", lambda self: given.append(self))
    for command in (["demo"], ["sweep", DIGITS]):
        monkeypatch.setattr(sys, "argv", ["supple", *command, option, "none", "l2"])
        cli.main()
    assert [command.methods for command in given] == [("none", "l2")] * 2


def test_help_names_every_command(supple, capsys):
    with pytest.raises(SystemExit) as exit_:
        supple("--help")
    output = capsys.readouterr().out
    assert exit_.value.code == 0
    assert all(command in output for command in cli.COMMANDS)


def test_the_version(supple, capsys):
    supple("--version")
    assert capsys.readouterr().out == f"supple {metadata.version('supple')}\n"


def test_help_waits_for_nothing_heavy():
    heavy = (
        "polars",
        "altair",
        "sklearn",
        "vl_convert",
        "ray",
        "scipy",
        "transformers",
        "datasets",
        "gymnasium",
        "mujoco",
    )
    result = in_python(f"import sys, supple.cli; print([name for name in {heavy} if name in sys.modules])")
    assert (result.stdout, result.returncode) == ("[]\n", 0)


def in_python(program, *arguments):
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(("strengths", "told"), [((1e-3,), False), ((1e-3, 1e-2), True)])
def test_a_sweep_of_several_settings_without_tuning_seeds_says_what_the_best_is_worth(
    strengths, told, monkeypatch, capsys
):
    monkeypatch.setattr(cli.Sweep, "train", lambda *arguments: None)
    monkeypatch.setattr(cli, "show", lambda *arguments: None)
    cli.Sweep(problem=DIGITS, methods=("none", "l2"), strengths=strengths, seeds=2)()
    assert ("the best of several settings looks better than it is" in capsys.readouterr().out) == told


def test_a_choice_at_the_end_of_what_was_tried_says_which_end():
    tried = [
        Run.of(DIGITS, "l2", [0], strength=strength, step_size=step_size)
        for strength in (1e-4, 1e-3, 1e-2)
        for step_size in (1e-3, 2e-3)
    ]
    (line,) = choices({("l2", 1e-3, 2e-3)}, tried)
    assert line == "chosen for l2: strength 0.001, step size 0.002 (the largest tried: try larger ones too)"


def test_the_metric_that_is_drawn_was_measured_in_all_runs(tmp_path):
    """The last of the tables may be about some of the runs only."""
    for method, metrics in (("none", ["train_accuracy"]), ("l2", ["train_accuracy", "test_accuracy"])):
        store(tmp_path, [Run.of(DIGITS, method, [0], tasks=2)], metrics, plausible)
    rows = load(str(tmp_path))
    assert print_tables(rows) == "train_accuracy"
    assert print_tables(rows.filter(method="l2")) == "test_accuracy"
