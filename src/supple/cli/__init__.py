"""The command line: each command is a dataclass whose field docstrings are its help texts."""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any, Literal

try:
    import tyro
except ModuleNotFoundError as error:
    if error.name != "tyro":
        raise
    raise SystemExit("supple: expected the extra `lab`, got no tyro: pip install '.[lab]' in the clone") from error

from supple import figures
from supple.cli.control import MAX_SEEDS, Control
from supple.cli.looking import PlasticityTestCommand, Report, Results
from supple.cli.options import Engine, Methods, Numbers, Protocol
from supple.cli.output import choices, show, table
from supple.errors import check_range, sentence
from supple.lab.problem import Scale

if TYPE_CHECKING:
    from rich.table import Table

    from supple.lab.run import Run

Problem = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PROBLEM")]
FIGURES = " ".join(f"{number}: {content}" for number, content in figures.contents().items())

# Heavy modules are imported where they are used, so that help texts appear at once.


@dataclass(frozen=True, kw_only=True)
class Demo(Engine):
    """Show how a small network loses its plasticity over 30 tasks, and how one more line keeps it.

    In each task the networks memorize new random labels for 1,797 scanned digits.
    """

    methods: Methods = ("none", "spectral", "decoupled-spectral")
    """Methods to compare; `supple list` names them all."""
    seeds: Annotated[int, tyro.conf.arg(metavar="N")] = 3
    """Networks per method, each with other initial weights and labels."""
    out: Annotated[str, tyro.conf.arg(metavar="FOLDER")] = "runs/demo"
    """Folder for results and charts. Runs that are already there are not trained again."""

    def __call__(self) -> None:
        from supple.lab.grid import product

        members = product("random-label-digits", self.methods, range(self.seeds))
        show(self.train(members), members, self.out)


@dataclass(frozen=True, kw_only=True)
class RunCommand(Protocol, Engine):
    """Train one method on one problem, over several seeds."""

    problem: Problem
    """A name from `supple list`, such as `random-label-mnist`, or `package.module:problem`."""
    method: Annotated[str, tyro.conf.arg(metavar="NAME")] = "spectral"
    """A name from `supple list`, or `package.module:Class`."""
    strength: Annotated[float | None, tyro.conf.arg(metavar="NUMBER", help_behavior_hint="")] = None
    """The method's strength; its default when left out."""
    step_size: Annotated[float | None, tyro.conf.arg(metavar="NUMBER", help_behavior_hint="")] = None
    """The optimizer's step size; the problem's when left out."""
    seeds: Annotated[int, tyro.conf.arg(metavar="N")] = 3
    """Networks to train, each with other initial weights and tasks."""
    first_seed: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """The first of consecutive seeds; `supple sweep --tuning-seeds` uses those from 1000 on."""

    def __call__(self) -> None:
        members = self.members()
        show(self.train(members, self.keep_checkpoints), members, self.out)

    def members(self) -> list["Run"]:
        """One run per network."""
        from supple.lab.grid import product

        strengths, step_sizes = ([] if value is None else [value] for value in (self.strength, self.step_size))
        return product(
            self.problem,
            [self.method],
            range(self.first_seed, self.first_seed + self.seeds),
            strengths=strengths,
            step_sizes=step_sizes,
            **self.changes(),
        )


@dataclass(frozen=True, kw_only=True)
class Sweep(Protocol, Engine):
    """Compare methods over strengths, step sizes and seeds; repeat the command to train only what is missing."""

    problem: Problem
    """A name from `supple list`, such as `random-label-mnist`, or `package.module:problem`."""
    methods: Methods = ("none", "l2", "l2-init", "spectral")
    """Names from `supple list`, or `package.module:Class`."""
    strengths: Annotated[Numbers, tyro.conf.arg(name="strength", aliases=["--strengths"])] = ()
    """Strengths to try for every method that has one; each method's default when left out. If methods need
    different strengths (see the defaults in `supple list`), sweep them one by one with the same `--out`."""
    step_sizes: Annotated[Numbers, tyro.conf.arg(name="step-size", aliases=["--step-sizes"])] = ()
    """The optimizer's step sizes; the problem's when left out."""
    seeds: Annotated[int, tyro.conf.arg(metavar="N")] = 3
    """Networks per setting, each with other initial weights and tasks."""
    tuning_seeds: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Number of extra seeds for choosing each method's strength and step size; only the best setting is then trained
    on `--seeds` seeds."""

    def __call__(self) -> None:
        from supple.lab.grid import TUNING_SEEDS, product, tuned

        check_range("seeds for tuning", self.tuning_seeds, 0, MAX_SEEDS)
        settings: dict[str, Any] = {"strengths": self.strengths, "step_sizes": self.step_sizes, **self.changes()}
        members = product(self.problem, self.methods, range(self.seeds), **settings)
        if self.tuning_seeds:
            others = range(TUNING_SEEDS, TUNING_SEEDS + self.tuning_seeds)
            candidates = product(self.problem, self.methods, others, **settings)
            tried = self.train(candidates, self.keep_checkpoints)
            show(tried, candidates, self.out, "tuning")
            best = tuned(tried)
            print(*choices(best, candidates), "now training the seeds to report", sep="\n")
            members = [run for run in members if (run.method, run.strengths[0], run.step_size) in best]
        elif len(members) > self.seeds * len(set(self.methods)):
            print(
                "note: the best of several settings looks better than it is: choose it on other seeds, --tuning-seeds 2"
            )
        show(self.train(members, self.keep_checkpoints), members, self.out)


@dataclass(frozen=True, kw_only=True)
class FigureCommand(Engine):
    """Reproduce a figure of the paper: train the runs that it needs, and draw it."""

    number: Annotated[tyro.conf.Positional[int], tyro.conf.arg(metavar="NUMBER", help=FIGURES)]
    scale: Scale = "quick"
    """`quick` takes at most ten minutes on two cores and runs every part of the figure; `paper` is the published
    protocol; `reduced` (Figures 1, 2, 3, 13 and 14) uses a narrow ResNet-18: one to two hours on one core, 3 seeds."""
    seeds: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """Networks per curve; when left out, 2 at quick scale, 3 at reduced scale, 10 (the paper's number) at paper
    scale."""
    out: Annotated[str, tyro.conf.arg(metavar="FOLDER")] = "runs/figures"
    """Folder for results and charts. Runs that are already there are not trained again."""

    def __call__(self) -> None:
        from supple.figures.control import ControlFigure
        from supple.lab import grid
        from supple.rl import run
        from supple.runs.charts import save

        self.check()
        figure = figures.find(self.number)
        if self.scale not in figure.scales:
            scales = " or ".join(figure.scales)
            raise ValueError(f"expected figure {self.number} at scale {scales}, got {self.scale}: choose one of these")
        seeds = {"quick": 2, "reduced": 3, "paper": 10}[self.scale] if self.seeds is None else self.seeds
        check_range("seeds", seeds, 1, MAX_SEEDS)
        if isinstance(figure, ControlFigure):
            self.train_agents(figure.runs(self.scale, seeds))
            chart = figure.draw(lambda runs: run.results(runs, self.out), self.scale, seeds)
        else:
            if runs := figure.runs(self.scale, seeds):
                self.train(runs)
            chart = figure.draw(lambda runs: grid.results(runs, self.out), self.scale, seeds)
        for path in save(chart, self.out, f"figure-{self.number:02}-{self.scale}"):
            print(f"chart: {path}")
        print(f"paper: {figure.claim}")
        if figure.runs(self.scale, seeds):
            print(f"next:  supple report {self.out}")


@dataclass(frozen=True, kw_only=True)
class List:
    """Name every problem, method, figure, data set, shift, network and optimizer."""

    kind: tyro.conf.Positional[Literal["everything", "problems", "methods", "figures", "parts"]] = "everything"
    """Show only this table."""

    def __call__(self) -> None:
        from rich.console import Console

        kinds = tables() if self.kind == "everything" else {self.kind: tables()[self.kind]}
        Console().print(*kinds.values(), sep="\n\n")


def tables() -> dict[str, "Table"]:
    """The tables of `supple list`, by name."""
    from supple.diagnostics import DIAGNOSTICS
    from supple.lab.datasets import DATASETS
    from supple.lab.models import MODELS
    from supple.lab.problems import PROBLEMS
    from supple.lab.shifts import SHIFTS
    from supple.training.methods import METHODS
    from supple.training.optimizers import OPTIMIZERS

    problems = table("Problems", "problem", "what it is; its tasks at each scale")
    for name, problem in PROBLEMS.items():
        tasks = ", ".join(f"{problem.protocol(scale)['tasks']} {scale}" for scale in problem.scales)
        problems.add_row(name, f"{problem.title}: {problem.summary}; {tasks}")
    methods = table("Methods", "method", "strength", "what it does; its options (--option)")
    for name, method in METHODS.items():
        strength = f"{method.strength:g}" if method.strength else "-"
        shown = {option: "left out" if value is None else value for option, value in method.defaults.items()}
        options = ", ".join(f"{option} {value}" for option, value in shown.items())
        what = f"{method.title}: {method.summary}"
        methods.add_row(name, strength, f"{what}; supple.{method.mitigator.__name__}: {options}" if options else what)
    methods.caption = "help(supple.ReDo) in Python explains the options of redo"
    drawings = table("Figures", "figure", "what it shows")
    for number, content in figures.contents().items():
        drawings.add_row(str(number), content)
    parts = table("Parts", "option", "values")
    parts.add_row("--data", ", ".join(DATASETS))
    parts.add_row("--shift", ", ".join(SHIFTS))
    parts.add_row("--model", ", ".join(MODELS))
    parts.add_row("--optimizer", ", ".join(OPTIMIZERS))
    parts.add_row("--diagnostics", ", ".join(DIAGNOSTICS))
    return {"problems": problems, "methods": methods, "figures": drawings, "parts": parts}


PLURALS = ("--methods", "--strengths", "--step-sizes")
"""Plural spellings that options also accept."""
COMMANDS: dict[str, Callable[..., Any]] = {
    "demo": Demo,
    "run": RunCommand,
    "sweep": Sweep,
    "figure": FigureCommand,
    "results": Results,
    "report": Report,
    "test": PlasticityTestCommand,
    "list": List,
    "rl": Control,
}


def main() -> None:
    """The entry point of the ``supple`` command."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--traceback"]
    if arguments == ["--version"]:
        print(f"supple {version('supple')}")
        return
    command = None
    try:
        command = _parsed(arguments)
        _call(command, with_traceback=len(arguments) < len(sys.argv) - 1)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # ignore a second Ctrl-C
        end = "no file is incomplete; run the same command to start again"
        if isinstance(command, Engine):
            end = f"finished tasks are kept in {command.out}; run the same command to resume"
        print(f"supple: stopped: {end}", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None


def _parsed(arguments: list[str]) -> Any:
    """The command, with its options. After a wrong option, only the help of this command is shown."""
    config = (tyro.conf.DisallowNone,)
    if arguments and arguments[0] in COMMANDS:
        name, *options = arguments
        given = [argument.partition("=")[0].replace("_", "-") for argument in options if argument.startswith("--")]
        given = [option.removesuffix("s") if option in PLURALS else option for option in given]
        if repeated := next((option for option in given if given.count(option) > 1), None):
            raise SystemExit(
                f"supple: expected {repeated} once, got it again: give all its values after one {repeated}"
            )
        return tyro.cli(COMMANDS[name], prog=f"supple {name}", args=options, config=config)
    return tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        prog="supple",
        description="Compare methods that keep a network able to learn as its data changes. "
        "With --traceback, errors show their full traceback.",
        args=arguments,
        config=config,
    )


def _call(command: Callable[[], None], *, with_traceback: bool) -> None:
    """Call a command; any exception ends the program with a one-line message and status 1."""
    try:
        command()
        sys.stdout.flush()
    except (Exception, SystemExit) as error:  # the user's own code may call sys.exit()
        if BrokenPipeError in (type(error), type(error.__context__)):  # nobody reads on, as after `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to write goes nowhere
            raise SystemExit(1) from None
        if with_traceback:
            traceback.print_exception(error)
        raise SystemExit(f"supple: {sentence(error)}") from None
