"""The commands for existing runs: ``supple results``, ``report`` and ``test``."""

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from supple.cli.output import draw, print_tables
from supple.errors import known

if TYPE_CHECKING:
    import polars as pl

Folder = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FOLDER")]

# Heavy modules are imported where they are used, so that help texts appear at once.


@dataclass(frozen=True, kw_only=True)
class Results:
    """Print the results in a folder of runs: mean, standard error and, for four or more seeds, interquartile mean."""

    runs: Folder = "runs"
    """The `--out` folder of the runs. `supple demo` writes to `runs/demo` by default, `supple figure` to
    `runs/figures`, `supple rl` to `runs/rl`."""
    metric: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")] = None
    """The metric to show, such as `spectral_norm`; accuracies (of `supple rl`: returns) when left out."""
    chart: bool = False
    """Also draw the curves of each problem's runs in one chart, into the folder."""

    def __call__(self) -> None:
        import polars as pl

        from supple.lab.grid import TUNING_SEEDS
        from supple.lab.problems import title_of
        from supple.runs.store import load

        tuning = pl.col("seed") >= TUNING_SEEDS
        problems = [
            part
            for rows in load(self.runs).partition_by("problem", "scale", maintain_order=True)
            for part in (_reported(rows).filter(~tuning), _reported(rows).filter(tuning))
            if not part.is_empty()
        ]
        if self.metric is not None:
            known(self.metric, sorted(pl.concat(problems)["metric"].unique()), "metric")
        for rows in problems:
            if self.metric and self.metric not in rows["metric"]:
                continue
            ended = rows.filter(pl.col("task").max().over("run", "member") == pl.col("tasks") - 1)
            if not ended.is_empty() and self.metric in (None, *ended["metric"].unique()):
                name, before = ("tuning", "Tuning: ") if rows["seed"][0] >= TUNING_SEEDS else ("results", "")
                metric = print_tables(ended, self.metric, before)
                if self.chart:
                    shown = f"-{metric}" if self.metric else ""
                    draw(ended, metric, self.runs, f"{name}-{rows['problem'][0]}-{rows['scale'][0]}{shown}", before)
            networks, problem = len(rows.unique(["run", "member"])), title_of(rows["problem"][0])
            if left := networks - len(ended.unique(["run", "member"])):
                print(
                    f"{left} of {networks} networks on {problem} have not finished and are left out: "
                    f"`supple report {shlex.quote(self.runs)}` shows their progress"
                )


def _reported(rows: "pl.DataFrame") -> "pl.DataFrame":
    """The reported rows of each protocol, in which only what a sweep tunes differs."""
    import polars as pl

    from supple.lab.grid import reported
    from supple.report.standings import TUNED
    from supple.runs.stats import settings

    protocol = [name for name in settings(rows) if name not in TUNED]
    return pl.concat(map(reported, rows.partition_by(protocol, maintain_order=True)))


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write one page about a folder of runs, to open from disk: curves, rankings, what ran, and how to repeat it."""

    runs: Folder = "runs"
    """The `--out` folder of the runs."""
    out: Annotated[str | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """The file of the page; `index.html` in that folder when left out."""
    watch: bool = False
    """Keep rewriting the page while runs are training, until Ctrl-C; the page reloads itself meanwhile."""

    def __call__(self) -> None:
        from supple.report import page_of, watch, write_page

        page = page_of(self.runs, self.out)
        if self.watch:
            print(f"page: {page}", flush=True)
            watch(self.runs, page)
        else:
            write_page(self.runs, page)
            print(f"page: {page}")


@dataclass(frozen=True, kw_only=True)
class PlasticityTestCommand:
    """Test whether a network of a run has lost plasticity, or its optimizer stalls, or neither.

    Copies of the network and a fresh network learn the next task. The run does not change, and may still be training.
    The result is saved in the run's folder, and `supple report` shows it.
    """

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """The folder of a run of `supple run`, `supple sweep` or `supple demo`, such as
    `runs/random-label-digits-none-75dfc3c8c1a5`, or a unique prefix of its name."""
    seed: int | None = None
    """The seed of the network to test; the run's first when left out."""
    strength: float | None = None
    """The strength of the network to test, if the run has several with this seed."""
    after: int | None = None
    """Test the network after this many tasks, if `--keep-checkpoints` kept a checkpoint there; the last checkpoint
    when left out."""
    steps: int | None = None
    """Training steps of each copy; 500, or the task's if it has fewer, when left out."""
    repeats: int = 5
    """Maximum number of repeats, each with another fresh network; the test stops earlier if the result is clear."""
    threads: int = 1
    """CPU threads; more than one helps only large networks on an idle machine."""

    def __call__(self) -> None:
        import torch

        from supple.lab import plasticity
        from supple.runs import sweep

        sweep.check(None, self.threads)
        torch.set_num_threads(self.threads)
        root, name, run = plasticity.find_run(self.run, self.seed, self.strength)
        member = plasticity.member_of(run, self.seed, self.strength)
        tested = plasticity.run_test(run, root, member=member, after=self.after, steps=self.steps, repeats=self.repeats)
        print(f"{name}, seed {run.seeds[member]}, after task {tested.facts['after']}:\n\n{tested.result}\n")
        result, *charts = plasticity.save_result(tested, f"{root}/{name}")
        for path in charts:
            print(f"chart:  {path}")
        print(f"result: {result}")
