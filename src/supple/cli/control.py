"""The command ``supple rl``."""

import os
import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from supple.cli.options import Engine

if TYPE_CHECKING:
    import polars as pl
    from rich.table import Table

    from supple.rl.run import Run

MOST_SEEDS = 1_000

# Everything heavy is imported where it is used, so that a help text appears at once.


@dataclass(frozen=True, kw_only=True)
class Control(Engine):
    """Train soft actor-critic on a control task, with methods that keep its networks plastic.

    A run that was stopped goes on after its last evaluation, and ends with the same bits.
    """

    task: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="TASK")]
    """A task of the DeepMind Control Suite, such as `quadruped-run`, the id of any Gymnasium environment, or
    `module:id` of one that a module of your own registers."""
    methods: Annotated[tuple[str, ...], tyro.conf.arg(name="method")] = ("spectral",)
    """What to train with, one or more of: none, resets, spectral, decoupled-spectral, spectral-norm, l2, l2-init,
    wasserstein, parseval, streaming-ewc, shrink-and-perturb, weight-clipping, hare-and-tortoise, upgd, redo,
    continual-backprop, self-normalized-resets; or `package.module:Class`, a mitigator of your own."""
    seeds: int = 3
    """Agents trained with each method."""
    steps: int = 500_000
    """Steps of the environment. On one core the paper's network takes about 170 updates a second, 16 a step: two
    hours and a half for 100,000 steps, a day for a million; `--replay-ratio 4` is four times as fast."""
    preset: str = "paper"
    """Where the constants come from: paper, doro, cleanrl or sb3."""
    strength: float | None = None
    """The method's, on actor and critic; its default when left out."""
    actor_strength: float | None = None
    """The method's on the actor, where it is another."""
    replay_ratio: int | None = None
    """Updates for each step of the environment; the preset's when left out."""
    random_steps: int | None = None
    """Steps with random actions before the first update; the preset's when left out."""
    capacity: int | None = None
    """Transitions that the replay buffer holds; the preset's when left out."""
    reset_every: int | None = None
    """For the method `resets`: updates from one to the next; 2,560,000 when left out."""
    reset_unit: Literal["updates", "steps"] | None = None
    """What `reset-every` counts; updates when left out."""
    reset_parts: tuple[str, ...] | None = None
    """What is drawn anew, among actor, critic, target, temperature, optimizer and buffer; all but the buffer when left
    out."""
    reset_layers: int | None = None
    """How many of the last layers are drawn anew; all when left out."""
    prime: int = 0
    """Heavy priming: so many updates on the first 100 transitions, before training goes on as usual."""
    evaluate_every: int = 5_000
    """Steps from one evaluation and checkpoint to the next."""
    episodes: int = 10
    """In each evaluation, with the policy's mean. In an environment without a time limit they end after 10,000 steps at
    the latest."""
    inside: bool = False
    """Also measure overestimation, norms, singular values, dormant units and effective rank at each evaluation."""
    video: bool = False
    """Show an episode of the first method's first agent at the end, as a strip of pictures; needs a GL library."""
    out: str = "runs/rl"
    """Where results, checkpoints and charts go: a folder on a disk, since replay buffers are mapped files."""
    device: str = "cpu"
    """Where the agents learn. On a CPU every seed is a process; elsewhere all seeds of a method are one population."""

    def __call__(self) -> None:
        if self.video:
            os.environ.setdefault("MUJOCO_GL", "egl")
        import polars as pl
        from rich.console import Console

        from supple.rl.charts import returns_over_steps, with_steps
        from supple.rl.train import rehearse, train
        from supple.runs.charts import save
        from supple.runs.store import digest, load

        runs, console = self._runs(), Console()
        self.check()
        rehearse(runs[0], root=self.out, device=self.device)
        if self.video:
            from supple.rl import video

            video.rehearse(self.task)
        if any(run.resets and not run.is_reset for run in runs):
            console.print("no reset falls into these runs, so that `resets` is `none` here: say --reset-every")
        left = [run for run in runs if not run.folder(self.out).finished(run.evaluations)]
        work = partial(train, root=self.out, device=self.device)
        lengths = {run: (run.method, run.steps) for run in left}
        self.work_through(lengths, work, done=len(runs) - len(left), wanted=len(runs))
        order = pl.DataFrame({"run": [run.folder(self.out).name for run in runs]})
        found = load(self.out, set(order["run"]))
        rows = with_steps(order.join(found, on="run", maintain_order="left_right"))
        self.mirror(rows.with_columns(task="step"))
        console.print(_table(rows, self.task))
        primed = f", primed with {self.prime:,} updates" if self.prime else ""
        chart = returns_over_steps(
            rows,
            f"{self.task}{primed}",
            f"evaluation return, mean and standard error over {self.seeds} seed{'s'[: self.seeds > 1]}",
        )
        name = re.sub(r"[^\w-]", "-", f"chart-{self.task}-{digest(' '.join(sorted(order['run'])))}")
        for path in save(chart, self.out, name):
            console.print(f"chart: {path}", highlight=False, soft_wrap=True)
        if self.video:
            console.print(f"video: {video.strip(runs[0], self.out)}", highlight=False, soft_wrap=True)
        console.print(f"runs:  {self.out}", highlight=False, soft_wrap=True)

    def _runs(self) -> "list[Run]":
        from supple.rl.methods import RESETS, find
        from supple.rl.presets import check
        from supple.rl.run import Run

        check("seeds", self.seeds, 1, MOST_SEEDS)
        check("methods", len(self.methods), 1)
        strengths = [value for value in (self.strength, self.actor_strength) if value is not None]
        if strengths and not any(find(method).has_strength for method in self.methods):
            raise ValueError(f"expected methods with a strength, got {', '.join(self.methods)}: leave --strength out")
        resets = {name: getattr(self, f"reset_{name}") for name in ("every", "unit", "parts", "layers")}
        given = [name for name, value in resets.items() if value is not None]
        if given and RESETS not in self.methods:
            raise ValueError(f"expected --method resets with --reset-{given[0]}, got {', '.join(self.methods)}: add it")
        apart = [[seed] for seed in range(self.seeds)] if self.device == "cpu" else [list(range(self.seeds))]
        return [
            Run.of(
                self.task,
                method,
                seeds,
                steps=self.steps,
                preset=self.preset,
                strength=self.strength,
                actor_strength=self.actor_strength,
                resets=resets if method == RESETS else None,
                evaluate_every=self.evaluate_every,
                episodes=self.episodes,
                prime=self.prime,
                inside=self.inside,
                replay_ratio=self.replay_ratio,
                random_steps=self.random_steps,
                capacity=self.capacity,
            )
            for seeds in apart
            for method in dict.fromkeys(self.methods)
        ]


def _table(rows: "pl.DataFrame", task: str) -> "Table":
    import polars as pl
    from rich.table import Table

    table = Table("method", title=f"Return, {task}", title_justify="left")
    for heading in ("strength", "stopped", "steps", "seeds", "at the end", "over seeds", "best evaluation"):
        table.add_column(heading, justify="right")
    value = pl.col("value")
    for found in rows.partition_by("method", "strength", maintain_order=True):
        method, strength = str(found["method"][0]), float(found["strength"][0])
        returns = found.filter(pl.col("metric") == "return")
        stopped = found.filter(pl.col("metric") == "stopped")["seed"].n_unique()
        curve = returns.group_by("step").agg(
            mean=value.mean(), error=value.std() / value.len().sqrt(), low=value.min(), high=value.max(), n=value.len()
        )
        row = [method, f"{strength:g}" if strength else "-", str(stopped or "-")]
        if len(curve):
            end, best = curve.sort("step").row(-1, named=True), curve.select(pl.col("mean").max()).item()
            error = f" ± {end['error']:.1f}" if end["n"] > 1 else ""
            spread = f"{end['low']:.1f} to {end['high']:.1f}"
            row += [f"{end['step']:,}", str(end["n"]), f"{end['mean']:.1f}{error}", spread, f"{best:.1f}"]
        table.add_row(*row)
    return table
