"""The command line: each command is a dataclass whose field docstrings are its help texts."""

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
    raise SystemExit("expected the laboratory, got the library alone: pip install 'supple[lab]'") from error

from supple.cli.control import Control
from supple.cli.options import Engine, Protocol
from supple.errors import known, sentence

if TYPE_CHECKING:
    import polars as pl

    from supple.lab.run import Run as RunConfig

Problem = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PROBLEM")]
Folder = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FOLDER")]

# Heavy modules are imported where they are used, so that help texts appear at once.


@dataclass(frozen=True, kw_only=True)
class Demo(Engine):
    """Watch a network lose its plasticity on real digits, and keep it with one more line.

    Small networks memorize random labels of 1,797 scanned digits, thirty times, each time with new labels.
    """

    methods: tuple[str, ...] = ("none", "spectral", "decoupled-spectral")
    """Methods to compare; `supple list` names them all."""
    seeds: int = 3
    """Networks per method, each with other initial weights and labels."""
    out: str = "runs/demo"
    """Folder for results and charts. Runs that are already there are not trained again."""

    def __call__(self) -> None:
        from supple.lab.grid import product

        members = product("random-label-digits", self.methods, range(self.seeds))
        _show(self.train(members), members, self.out)


@dataclass(frozen=True, kw_only=True)
class Run(Protocol, Engine):
    """Train one method on one problem, over several seeds."""

    problem: Problem
    """A name from `supple list`, such as `random-label-mnist`, or `package.module:problem`."""
    method: str = "spectral"
    """A name from `supple list`, or `package.module:Class`."""
    strength: float | None = None
    """The method's strength; its default when left out."""
    step_size: float | None = None
    """The optimizer's step size; the problem's when left out."""
    seeds: int = 3
    """Networks to train, each with other initial weights and tasks."""
    first_seed: int = 0
    """The first of consecutive seeds; `supple sweep --tuning-seeds` uses those from 1000 on."""

    def __call__(self) -> None:
        members = self.members()
        _show(self.train(members), members, self.out)

    def members(self) -> list["RunConfig"]:
        """One run per network."""
        from supple.lab.grid import product
        from supple.training import methods

        if self.strength is not None and not methods.find(self.method).has_strength:
            raise ValueError(
                f"expected no strength of {self.method}, which has none, got {self.strength}: leave it out"
            )
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
    methods: tuple[str, ...] = ("none", "l2", "l2-init", "spectral")
    """Names from `supple list`, or `package.module:Class`."""
    strengths: tuple[float, ...] = ()
    """Strengths of every method that has one; each method's default when left out. If strengths mean
    different things (see the defaults in `supple list`), sweep the methods one by one with the same `--out`."""
    step_sizes: tuple[float, ...] = ()
    """The optimizer's step sizes; the problem's when left out."""
    seeds: int = 3
    """Networks per setting, each with other initial weights and tasks."""
    tuning_seeds: int = 0
    """Number of other seeds to choose each method's strength and step size; only the best are trained on `seeds`."""

    def __call__(self) -> None:
        from supple.lab.grid import TUNING_SEEDS, product, tuned

        settings: dict[str, Any] = {"strengths": self.strengths, "step_sizes": self.step_sizes, **self.changes()}
        members = product(self.problem, self.methods, range(self.seeds), **settings)
        if self.tuning_seeds:
            others = range(TUNING_SEEDS, TUNING_SEEDS + self.tuning_seeds)
            candidates = product(self.problem, self.methods, others, **settings)
            tried = self.train(candidates)
            _show(tried, candidates, self.out, "tuning")
            best = tuned(tried)
            members = [run for run in members if (run.method, run.strengths[0], run.step_size) in best]
        _show(self.train(members), members, self.out)


@dataclass(frozen=True, kw_only=True)
class Figure(Engine):
    """Reproduce a figure of the paper: train the runs that it needs, and draw it."""

    number: Annotated[tyro.conf.Positional[int], tyro.conf.arg(metavar="NUMBER")]
    """1: generalisation on tiny-ImageNet. 2: pixel permutation. 3: diagnostics of networks that memorize random labels.
    4: the strength with a ResNet-18. 6: two units, exact. 7: the exponent. 8: Fashion-MNIST. 9: random labels on
    tiny-ImageNet. 10: the strength with MLPs. 11: EMNIST. 12: MNIST. 13: capacity. 14: singular values. 15: Continual
    ImageNet. (For 5 and 16 use `supple rl`: docs/control.md.)"""
    scale: Literal["quick", "paper"] = "quick"
    """`quick` takes at most ten minutes on two cores and tries every part; `paper` is the published protocol."""
    seeds: int | None = None
    """Networks per curve; when left out, 2 at quick scale and 10, as in the paper, at paper scale."""
    out: str = "runs/figures"
    """Folder for results and charts. Runs that are already there are not trained again."""

    def __call__(self) -> None:
        from supple import figures
        from supple.lab.grid import results
        from supple.runs.charts import save

        self.check()
        figure = figures.load(self.number)
        seeds = {"quick": 2, "paper": 10}[self.scale] if self.seeds is None else self.seeds
        if seeds < 1:
            raise ValueError(f"expected at least 1 seed, got {seeds}: nothing would be drawn")
        if runs := figure.runs(self.scale, seeds):
            self.train(runs)
        chart = figure.draw(lambda runs: results(runs, self.out), self.scale, seeds)
        for path in save(chart, self.out, f"figure-{self.number:02}-{self.scale}"):
            print(f"chart: {path}")


@dataclass(frozen=True, kw_only=True)
class Results:
    """Print the results in a folder of runs: mean, standard error, interquartile mean and bootstrap interval."""

    runs: Folder = "runs"
    """The folder that a run or sweep was given as `--out`. The default of `supple demo` is `runs/demo`, that of
    `supple figure` is `runs/figures`, that of `supple rl` is `runs/rl`."""
    metric: str | None = None
    """The metric to show, such as `spectral_norm`; accuracies (of `supple rl`: returns) when left out."""

    def __call__(self) -> None:
        import polars as pl

        from supple.lab.grid import reported
        from supple.runs.store import load

        problems = [reported(rows) for rows in load(self.runs).partition_by("problem", "scale", maintain_order=True)]
        if self.metric is not None:
            known(self.metric, sorted(pl.concat(problems)["metric"].unique()), "metric")
        for rows in problems:
            if self.metric and self.metric not in rows["metric"]:
                continue
            ended = rows.filter(pl.col("task").max().over("run", "member") == pl.col("tasks") - 1)
            if not ended.is_empty() and self.metric in (None, *ended["metric"].unique()):
                _print_tables(ended, self.metric)
            networks = len(rows.unique(["run", "member"]))
            if left := networks - len(ended.unique(["run", "member"])):
                print(
                    f"{left} of {networks} networks on {rows['problem'][0]} are not at their end and left out: "
                    f"`supple report {self.runs}` shows how far they are"
                )


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write one page about a folder of runs, to open from disk: curves, rankings, what ran, and how to repeat it."""

    runs: Folder = "runs"
    """The folder that a run or sweep was given as `--out`."""
    out: str | None = None
    """The file of the page; `index.html` in that folder when left out."""
    watch: bool = False
    """Keep rewriting the page while runs are training, until Ctrl-C; the page reloads itself meanwhile."""

    def __call__(self) -> None:
        from supple.report import page_of, watch, write_page

        page = page_of(self.runs, self.out)
        print(f"page: {page}", flush=True)
        if self.watch:
            watch(self.runs, page)
        else:
            write_page(self.runs, page)


@dataclass(frozen=True, kw_only=True)
class List:
    """Name every problem, method, data set, shift, network and optimizer."""

    def __call__(self) -> None:
        from rich.console import Console
        from rich.table import Table

        from supple.diagnostics import DIAGNOSTICS
        from supple.lab.datasets import DATASETS
        from supple.lab.models import MODELS
        from supple.lab.problems import PROBLEMS
        from supple.lab.shifts import SHIFTS
        from supple.training.methods import METHODS
        from supple.training.optimizers import OPTIMIZERS

        problems = Table("problem", "scales", "tasks", "what it is", title="Problems", title_justify="left")
        for name, problem in PROBLEMS.items():
            tasks = [str(problem.protocol(scale)["tasks"]) for scale in problem.scales]
            problems.add_row(name, ", ".join(problem.scales), ", ".join(tasks), problem.summary)
        methods = Table("method", "strength", "what it does", title="Methods", title_justify="left")
        for name, method in METHODS.items():
            methods.add_row(name, f"{method.strength:g}" if method.strength else "-", method.summary)
        parts = Table("of", "there are", title="Parts", title_justify="left")
        for kind, table in (
            ("data", DATASETS),
            ("shift", SHIFTS),
            ("model", MODELS),
            ("optimizer", OPTIMIZERS),
            ("diagnostics", DIAGNOSTICS),
        ):
            parts.add_row(f"--{kind}", ", ".join(table))
        Console().print(problems, methods, parts, sep="\n\n")


def _show(rows: "pl.DataFrame", members: "list[RunConfig]", out: str, name: str = "chart") -> None:
    """Print the tables and draw the curves of one problem; the files' names depend on the runs."""
    from supple.runs.charts import learning_curves, save
    from supple.runs.store import digest
    from supple.runs.tables import stamped

    seeds = rows["seed"].n_unique()
    metric = _print_tables(rows)
    subtitle = f"mean and standard error over {seeds} seed{'s'[: seeds > 1]}"
    problem = rows["problem"][0].replace(":", "-")
    ending = digest(" ".join(sorted(run.folder(out).name for run in members)))
    for path in save(learning_curves(rows, metric, stamped(rows), subtitle), out, f"{name}-{problem}-{ending}"):
        print(f"chart: {path}")
    print(f"runs:  {out}")


def _print_tables(rows: "pl.DataFrame", metric: str | None = None) -> str:
    """Print the tables of one problem; return the metric of the last one."""
    from rich.console import Console

    from supple.runs.metrics import HEADLINES
    from supple.runs.tables import results_table

    shown = [metric] if metric else [name for name in HEADLINES if name in rows["metric"]] or [rows["metric"][0]]
    for each in shown:
        console, table = Console(), results_table(rows, each)
        # A narrow console (80 columns for a file) would cut off the methods' names: print longer lines instead.
        whole = console.measure(table, options=console.options.update(max_width=10_000)).maximum
        console.width = max(console.width, whole)
        console.print(table)
    return shown[-1]


COMMANDS: dict[str, Callable[..., Any]] = {
    "demo": Demo,
    "run": Run,
    "sweep": Sweep,
    "figure": Figure,
    "results": Results,
    "report": Report,
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
        command = tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="supple",
            description="Which methods keep a network able to learn as its data changes? "
            "With --traceback, an error shows where it comes from.",
            args=arguments,
            config=(tyro.conf.DisallowNone,),
        )
        _call(command, with_traceback=len(arguments) < len(sys.argv) - 1)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # ignore a second Ctrl-C
        end = "no file is half written, and the same command starts again"
        if isinstance(command, Engine | Control):
            end = f"finished tasks are kept in {command.out}, and the same command goes on after them"
        print(f"supple: stopped: {end}", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None


def _call(command: Callable[[], None], *, with_traceback: bool) -> None:
    """Call a command; any exception ends the program with a one-line message and status 1."""
    try:
        command()
    except (Exception, SystemExit) as error:  # the user's own code may call sys.exit()
        if with_traceback:
            traceback.print_exception(error)
        raise SystemExit(f"supple: {sentence(error)}") from None
