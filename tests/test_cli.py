"""The commands as they are typed: what they print, what they leave, and how they fail."""

import dataclasses
import subprocess
import sys

import polars as pl
import pytest
import torch

from supple import cli
from supple.lab.methods import METHODS
from supple.lab.problems import PROBLEMS
from supple.runs import sweep

DIGITS = "random-label-digits"


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    yield
    torch.set_flush_denormal(False)


@pytest.fixture
def supple(monkeypatch):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["supple", *map(str, arguments)])
        cli.main()

    return call


@pytest.fixture
def jobs(monkeypatch):
    """Short tasks, in this process; the jobs that were done."""
    done = []

    def work_through(jobs, work, *, workers, report):
        for job in jobs:
            while work(job, lambda tasks, job=job: report(job, tasks)):
                pass
            done.append(job)

    monkeypatch.setattr(sweep, "work_through", work_through)
    monkeypatch.setitem(PROBLEMS, DIGITS, dataclasses.replace(PROBLEMS[DIGITS], epochs=2, tasks=2))
    return done


def measured(out):
    """Training accuracies by method, from disk."""
    frames = {path.parent.name: pl.read_parquet(path) for path in out.glob("*/metrics.parquet")}
    accuracy = pl.col("metric") == "train_accuracy"
    return {name: frame.filter(accuracy).sort("task")["value"].to_list() for name, frame in frames.items()}


def table(output):
    """Method to the other cells."""
    lines = [line for line in output.splitlines() if line.startswith("│")]
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
    return {row[0]: row[1:] for row in cells}


def test_list_names_everything(supple, capsys):
    supple("list")
    found = table(capsys.readouterr().out)
    assert found.keys() == PROBLEMS.keys() | METHODS.keys()
    for name, problem in PROBLEMS.items():
        assert found[name] == [problem.scale, str(problem.tasks), problem.summary]
    for name, method in METHODS.items():
        assert found[name] == [f"{method.strength:g}" if method.strength else "-", method.summary]


def test_run_trains_in_processes_of_its_own(supple, tmp_path, capsys):
    supple("run", DIGITS, "--method", "none", "--tasks", 1, "--seeds", 1, "--out", tmp_path, "--workers", 1)
    ((accuracy,),) = measured(tmp_path).values()
    assert accuracy > 0.3  # of random labels, of which 0.1 are right by chance
    output = capsys.readouterr().out
    shown = f"{accuracy:.3f}"
    assert table(output) == {"none": ["-", shown, shown, f"{shown} to {shown}"]}


def test_two_methods_side_by_side(supple, jobs, tmp_path, capsys):
    supple("demo", "--methods", "none", "spectral", "--seeds", 2, "--out", tmp_path)
    assert {(job.method, job.seeds) for job in jobs} == {(m, (s,)) for m in ("none", "spectral") for s in (0, 1)}
    output, results = capsys.readouterr().out, measured(tmp_path)
    for method, cells in table(output).items():
        (a0, a1), (b0, b1) = (values for name, values in results.items() if name.startswith(f"{DIGITS}-{method}-"))
        a, b = (a0 + a1) / 2, (b0 + b1) / 2
        assert cells == [
            f"{METHODS[method].strength:g}" if METHODS[method].strength else "-",
            f"{(a0 + b0) / 2:.3f}",
            f"{(a + b) / 2:.3f} ± {abs(a - b) / 2:.3f}",
            f"{min(a, b):.3f} to {max(a, b):.3f}",
        ]
    assert list(table(output)) == ["none", "spectral"]
    for name in ("chart.svg", "chart.png", "chart.html"):
        assert (tmp_path / name).stat().st_size > 0
        assert str(tmp_path / name) in output
    bars = [line for line in output.splitlines() if "100%" in line]
    assert [line.split()[0] for line in bars] == ["none", "spectral", "all"]


def test_options_reach_the_runs(supple, jobs, tmp_path):
    options = {"--method": "l2", "--strength": 0.25, "--step-size": 0.002, "--tasks": 1, "--seeds": 2}
    supple("run", DIGITS, *(part for pair in options.items() for part in pair), "--out", tmp_path)
    assert [(job.method, job.strength, job.step_size, job.tasks, job.seeds) for job in jobs] == [
        ("l2", 0.25, 0.002, 1, (seed,)) for seed in (0, 1)
    ]


def test_what_is_there_is_not_trained_again(supple, jobs, tmp_path, capsys):
    command = ("demo", "--methods", "none", "l2", "--seeds", 1, "--out", tmp_path)
    supple(*command)
    first = table(capsys.readouterr().out)
    assert len(jobs) == 2
    supple(*command)
    assert len(jobs) == 2
    assert table(capsys.readouterr().out) == first
    supple("demo", "--methods", "spectral", "--seeds", 1, "--out", tmp_path)
    assert len(jobs) == 3
    assert list(table(capsys.readouterr().out)) == ["spectral"]  # and not what else is in the folder


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("run", "random-lable-digits"), "did you mean 'random-label-digits'?"),
        (("run", DIGITS, "--method", "spectrl"), "did you mean 'spectral'?"),
        (("demo", "--methods", "none", "l2init"), "did you mean 'l2-init'?"),
        (("run", DIGITS, "--strength", -1), "strength"),
        (("run", DIGITS, "--tasks", 0), "task"),
        (("run", DIGITS, "--seeds", 0), "seed"),
        (("demo", "--seeds", 0), "seed"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_errors_are_one_line(arguments, expected, supple, jobs, tmp_path):
    supple("demo", "--methods", "none", "--seeds", 1, "--out", tmp_path)  # the folder is not empty
    with pytest.raises(SystemExit) as error:
        supple(*arguments, "--out", tmp_path)
    message = error.value.code
    assert message.startswith("supple: expected ")
    assert expected in message
    assert "\n" not in message


def test_an_error_is_printed_without_a_traceback():
    result = in_python("from supple.cli import main; main()", "run", "nothing")
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("supple: expected a problem, got 'nothing'")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(("command", "options"), [("demo", cli.Demo), ("run", cli.Run), ("list", cli.List)])
def test_help_names_every_option(command, options, supple, capsys):
    with pytest.raises(SystemExit) as exit_:
        supple(command, "--help")
    output = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert exit_.value.code == 0
    assert options.__doc__.splitlines()[0] in output
    for field in dataclasses.fields(options):
        assert f"--{field.name.replace('_', '-')}" in output or field.name == "problem"


def test_help_names_every_command(supple, capsys):
    with pytest.raises(SystemExit) as exit_:
        supple("--help")
    output = capsys.readouterr().out
    assert exit_.value.code == 0
    assert all(command in output for command in ("demo", "run", "list"))


def test_help_waits_for_nothing_heavy():
    heavy = ("polars", "altair", "sklearn", "vl_convert")
    result = in_python(f"import sys, supple.cli; print([name for name in {heavy} if name in sys.modules])")
    assert (result.stdout, result.returncode) == ("[]\n", 0)


def in_python(program, *arguments):
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60)
