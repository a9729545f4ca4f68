"""The command line: each command is a dataclass whose field docstrings are its help."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from supple.rl.command import Control

if TYPE_CHECKING:
    import polars as pl
    from rich.table import Table

    from supple.lab.problems import Run as RunConfig

# Everything heavy is imported where it is used, so that a help text appears at once.


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Watch a network lose its plasticity on real digits, and keep it with one more line.

    Small networks memorize random labels for 1,797 scanned digits, thirty times over, each time with new labels.
    """

    methods: tuple[str, ...] = ("none", "spectral", "decoupled-spectral")
    """What to compare; `supple list` names them all."""
    seeds: int = 3
    """Networks trained for each method, from different initial weights on different labels."""
    out: Path = Path("runs/demo")
    """Where results and charts go. What is already there is not trained again."""
    workers: int | None = None
    """Processes at a time; one for each core when left out."""

    def __call__(self) -> None:
        _compare("random-label-digits", self.methods, self.seeds, self.out, self.workers)


@dataclass(frozen=True, kw_only=True)
class Run:
    """Train one method on one problem, over several seeds."""

    problem: tyro.conf.Positional[str]
    """A name from `supple list`."""
    method: str = "spectral"
    """A name from `supple list`."""
    strength: float | None = None
    """The method's strength; its default when left out."""
    step_size: float | None = None
    """The optimizer's; the problem's own when left out."""
    tasks: int | None = None
    """How many tasks to learn, one after the other; the problem's own number when left out."""
    seeds: int = 3
    """Networks trained, from different initial weights on different tasks."""
    out: Path = Path("runs")
    """Where results and charts go. A run that was interrupted goes on after its last finished task."""
    workers: int | None = None
    """Processes at a time; one for each core when left out."""

    def __call__(self) -> None:
        changes = {"strength": self.strength, "step_size": self.step_size, "tasks": self.tasks}
        _compare(self.problem, [self.method], self.seeds, self.out, self.workers, **changes)


@dataclass(frozen=True, kw_only=True)
class List:
    """Name every problem and every method."""

    def __call__(self) -> None:
        from rich.console import Console
        from rich.table import Table

        from supple.lab.methods import METHODS
        from supple.lab.problems import PROBLEMS

        problems = Table("problem", "scale", "tasks", "what it is", title="Problems", title_justify="left")
        for name, problem in PROBLEMS.items():
            problems.add_row(name, problem.scale, str(problem.tasks), problem.summary)
        methods = Table("method", "strength", "what it does", title="Methods", title_justify="left")
        for name, method in METHODS.items():
            methods.add_row(name, f"{method.strength:g}" if method.strength else "-", method.summary)
        console = Console()
        console.print(problems, methods, sep="\n\n")


def _compare(
    problem: str, methods: Sequence[str], seeds: int, out: Path, workers: int | None, **changes: float | None
) -> None:
    """Train every method with every seed, then print a table and draw the curves."""
    import polars as pl
    from rich.console import Console

    from supple.lab.problems import Run as RunConfig
    from supple.runs.charts import learning_curves, save
    from supple.runs.store import load

    # On a CPU these networks fill a core each: one seed a run, so that the cores stay busy to the end.
    runs = [
        RunConfig.of(problem, method, [seed], **changes) for seed in range(seeds) for method in dict.fromkeys(methods)
    ]
    if not runs:
        raise ValueError(f"expected at least one method and one seed, got {len(methods)} and {seeds}")
    _train([run for run in runs if not run.folder(out).finished(run.tasks)], out, workers)
    order = pl.DataFrame({"run": [run.folder(out).path.name for run in runs]})
    rows = order.join(load(out), on="run", maintain_order="left_right")

    console = Console()
    console.print(_table(rows, f"{problem} ({runs[0].scale} scale)"))
    chart = learning_curves(
        rows,
        "train_accuracy",
        f"{problem} ({runs[0].scale} scale)",
        f"mean and standard error over {seeds} seed{'s'[: seeds > 1]}",
    )
    for path in save(chart, out):
        console.print(f"chart: {path}", highlight=False, soft_wrap=True)
    console.print(f"runs:  {out}", highlight=False, soft_wrap=True)


def _train(runs: Sequence["RunConfig"], out: Path, workers: int | None) -> None:
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from supple.lab.trainer import train
    from supple.runs.sweep import work_through

    if not runs:
        return
    done = dict.fromkeys(runs, 0.0)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("left:"), TimeRemainingColumn(), refresh_per_second=2) as progress:
        bars = {
            method: progress.add_task(method, total=sum(run.tasks for run in runs if run.method == method))
            for method in dict.fromkeys(run.method for run in runs)
        }
        whole = progress.add_task("all", total=sum(run.tasks for run in runs))

        def report(run: "RunConfig", tasks: float) -> None:
            done[run] = tasks
            progress.update(
                bars[run.method], completed=sum(done[other] for other in runs if other.method == run.method)
            )
            progress.update(whole, completed=sum(done.values()))

        work_through(runs, partial(train, root=out, pieces=2), workers=workers, report=report)


def _table(rows: "pl.DataFrame", title: str) -> "Table":
    from rich.table import Table

    from supple.runs.stats import by_task, last_tasks

    count = min(5, *rows["tasks"].to_list())
    last = last_tasks(rows, "train_accuracy", count)
    first = {
        (row["method"], row["strength"]): row["mean"]
        for row in by_task(rows, "train_accuracy").to_dicts()
        if not row["task"]
    }
    table = Table("method", title=f"Training accuracy, {title}", title_justify="left")
    for heading in ("strength", "first task", f"last {count} tasks", "over seeds"):
        table.add_column(heading, justify="right")
    for row in last.to_dicts():
        error = f" ± {row['error']:.3f}" if row["error"] is not None else ""
        table.add_row(
            row["method"],
            f"{row['strength']:g}" if row["strength"] else "-",
            f"{first[row['method'], row['strength']]:.3f}",
            f"{row['mean']:.3f}{error}",
            f"{row['low']:.3f} to {row['high']:.3f}",
        )
    return table


COMMANDS: dict[str, Callable[..., Any]] = {"demo": Demo, "run": Run, "list": List, "rl": Control}


def main() -> None:
    """The entry point of the ``supple`` command."""
    command = tyro.extras.subcommand_cli_from_dict(
        COMMANDS, prog="supple", description="Which methods keep a network trainable while its data changes?"
    )
    try:
        command()
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"supple: {error}") from None
