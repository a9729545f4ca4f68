"""The command ``supple rl``."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from supple.cli.options import Engine, Methods, Options, Precision, with_booleans
from supple.cli.output import print_ending, print_table
from supple.errors import check_range

if TYPE_CHECKING:
    import polars as pl
    from rich.table import Table

    from supple.rl.run import Run

MAX_SEEDS = 1_000
HEADINGS = ("method", "strength", "steps", "seeds", "at the end")

# Heavy modules are imported where they are used, so that help texts appear at once.


@dataclass(frozen=True, kw_only=True)
class Control(Engine):
    """Train soft actor-critic on a control task, with methods that keep its networks plastic.

    An interrupted run resumes after its last evaluation, and its result is bit-for-bit identical.
    """

    task: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="TASK")]
    """A task of the DeepMind Control Suite, such as `quadruped-run`, the id of a Gymnasium environment with continuous
    actions, or `module:id` for one that your own module registers."""
    methods: Methods = ("spectral",)
    """Methods to compare: those of `supple list` that do not change the network; `resets`, which reinitializes the
    whole agent; or `package.module:Class` for your own."""
    seeds: Annotated[int, tyro.conf.arg(metavar="N")] = 3
    """Agents per method."""
    first_seed: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """The first of consecutive seeds."""
    steps: Annotated[int, tyro.conf.arg(metavar="N")] = 500_000
    """Environment steps. On one idle core the paper's network does about 170 updates per second, with 16 per step: two
    and a half hours for 100,000 steps, a day for a million; `--replay-ratio 4` is four times as fast. Runs of fewer
    than 20,000 updates are not compiled, and slower."""
    preset: Annotated[str, tyro.conf.arg(metavar="NAME")] = "paper"
    """Source of the hyperparameters: paper, doro, cleanrl or sb3."""
    strength: Annotated[float | None, tyro.conf.arg(metavar="NUMBER", help_behavior_hint="")] = None
    """The method's strength on actor and critic; its default when left out."""
    actor_strength: Annotated[float | None, tyro.conf.arg(metavar="NUMBER", help_behavior_hint="")] = None
    """The method's strength on the actor, if it differs from the critic's."""
    option: Options = None
    """Keyword arguments of the method's class except its strength, such as `target initial` of `decoupled-spectral`."""
    exempt_heads: Annotated[bool | None, tyro.conf.arg(help_behavior_hint="")] = None
    """Whether the method leaves out the critic's last layer and the actor's mean and deviation; when left out, only
    `decoupled-spectral` does."""
    replay_ratio: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """Updates per environment step; the preset's when left out."""
    random_steps: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """Steps with random actions before the first update; the preset's when left out."""
    capacity: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """Transitions that the replay buffer holds; the preset's when left out."""
    reset_every: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """For the method `resets`: updates between two resets; 2,560,000 when left out."""
    reset_unit: Literal["updates", "steps"] | None = None
    """The unit of `reset-every`; updates when left out."""
    reset_parts: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="NAME ...", help_behavior_hint="")] = None
    """Parts to reset, among actor, critic, target, temperature, optimizer and buffer; all but the buffer when left
    out."""
    reset_layers: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """How many of the last layers to reset; all when left out."""
    prime: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Heavy priming: number of updates on the first 100 transitions, before normal training."""
    evaluate_every: Annotated[int, tyro.conf.arg(metavar="N")] = 5_000
    """Steps between two evaluations; each evaluation writes a checkpoint."""
    episodes: Annotated[int, tyro.conf.arg(metavar="N")] = 10
    """Episodes per evaluation, with the policy's mean action. In an environment without a time limit they end after at
    most 10,000 steps."""
    inside: bool = False
    """Also measure overestimation, policy entropy, norms, singular values, effective step sizes, dormant units and
    effective rank at each evaluation."""
    matmul_precision: Precision = "highest"
    """Precision of float32 matrix products in updates. `high` lets a GPU round inputs to TensorFloat32; `medium` also
    lets a CPU use bfloat16, if it has units for it. Evaluations stay exact."""
    change: Annotated[Literal["actions", "dynamics", "task"] | None, tyro.conf.arg(help_behavior_hint="")] = None
    """What changes in the world every `change-every` steps: `actions`, order and signs of the action's components (any
    environment); `dynamics`, masses, friction and damping (tasks of the suite); `task`, another task of the suite with
    the same body. The seed determines each change; agent and buffer are kept. Nothing changes when left out."""
    change_every: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """Steps between two changes, a multiple of `evaluate-every`."""
    video: bool = False
    """At the end, save an episode of the first method's first agent as a strip of images; needs a GL library."""
    out: Annotated[str, tyro.conf.arg(metavar="FOLDER")] = "runs/rl"
    """Folder for results, checkpoints and charts, on a file system (a local disk is fastest): replay buffers are
    memory-mapped files."""
    device: Annotated[str, tyro.conf.arg(metavar="DEVICE")] = "cpu"
    """Device of the agents. On a CPU each seed is trained in its own process; on other devices all seeds of a method
    are trained together."""

    def __call__(self) -> None:
        if self.video:
            os.environ.setdefault("MUJOCO_GL", "egl")
        from supple.rl.charts import over_steps
        from supple.runs.charts import over_seeds, save
        from supple.runs.stats import note_on_diverged
        from supple.runs.store import digest, file_name

        runs = self.members()
        if self.video:
            from supple.rl import video

            video.check(self.task)
        if any(run.resets and not run.is_reset for run in runs):
            print("these runs end before the first reset, so `resets` equals `none`: set a smaller --reset-every")
        rows = self.train_agents(runs, self.device)
        print_table(_table(rows, self.task))
        primed = f", primed with {self.prime:,} updates" if self.prime else ""
        diverged = note_on_diverged(rows, "return")
        if diverged:
            print(diverged)
        subtitle = "; ".join(filter(None, [f"evaluation return, {over_seeds(self.seeds)}", diverged]))
        chart = over_steps(rows, "return", f"{self.task}{primed}", subtitle)
        folders = " ".join(sorted(run.folder(self.out).name for run in runs))
        for path in save(chart, self.out, file_name(f"chart-{self.task}-{digest(folders)}")):
            print(f"chart: {path}")
        if self.video:
            print(f"video: {video.strip(runs[0], self.out)}")
        print_ending(self.out)

    def members(self) -> "list[Run]":
        """One run per method and seed; on other devices than a CPU, one per method."""
        from supple.rl.methods import RESETS, find
        from supple.rl.run import COMMAND_FIELDS, Run

        check_range("seeds", self.seeds, 1, MAX_SEEDS)
        check_range("methods", len(self.methods), 1)
        strengths = [value for value in (self.strength, self.actor_strength) if value is not None]
        if strengths and not any(find(method).has_strength for method in self.methods):
            raise ValueError(f"expected methods with a strength, got {', '.join(self.methods)}: leave --strength out")
        resets = {name: getattr(self, f"reset_{name}") for name in ("every", "unit", "parts", "layers")}
        given = [name for name, value in resets.items() if value is not None]
        if given and RESETS not in self.methods:
            raise ValueError(f"expected --method resets with --reset-{given[0]}, got {', '.join(self.methods)}: add it")
        seeds = range(self.first_seed, self.first_seed + self.seeds)
        seed_groups = [[seed] for seed in seeds] if self.device == "cpu" else [list(seeds)]
        return [
            Run.of(
                self.task,
                method,
                seeds,
                strength=self.strength,
                actor_strength=self.actor_strength,
                resets=resets if method == RESETS else None,
                options=with_booleans(self.option),
                exempt_heads=self.exempt_heads,
                matmul_precision=self.matmul_precision,
                **{name: getattr(self, name) for name in COMMAND_FIELDS},
            )
            for seeds in seed_groups
            for method in dict.fromkeys(self.methods)
        ]


def _table(rows: "pl.DataFrame", task: str) -> "Table":
    import polars as pl

    from supple.runs.changes import Changes
    from supple.runs.stats import MEAN_AND_ERROR
    from supple.runs.tables import table_of
    from supple.training.methods import strength_text, title_of

    changes = Changes.of(rows)
    last = ("all evaluations", "before changes") if changes else ("over seeds", "best")
    value, lines = pl.col("value"), []
    for part in rows.partition_by("method", "strength", maintain_order=True):
        method, strength = str(part["method"][0]), float(part["strength"][0])
        returns = part.filter(pl.col("metric") == "return")
        stopped = part.filter(pl.col("metric") == "stopped")["seed"].n_unique()
        curve = returns.group_by("step").agg(**MEAN_AND_ERROR, low=value.min(), high=value.max())
        line = [title_of(method), strength_text(method, strength)]
        seeds = f" ({stopped} stopped)" if stopped else ""
        if len(curve):
            end, best = curve.sort("step").row(-1, named=True), curve.select(pl.col("mean").max()).item()
            line += [f"{end['step']:,}", f"{end['seeds']}{seeds}", _with_error(end["mean"], end["error"])]
            if changes:
                learned = changes.learned(returns, ["method", "strength"]).row(0, named=True)
                line += [_with_error(learned[name], learned[f"{name}_error"]) for name in ("overall", "learned")]
            else:
                line += [f"{end['low']:.1f} to {end['high']:.1f}" if end["seeds"] > 1 else "-", f"{best:.1f}"]
        else:
            line += ["-", f"0{seeds}", "-", "-", "-"]
        lines.append(line)
    title = f"Return, {task}, {changes}" if changes else f"Return, {task}"
    return table_of(title, (*HEADINGS, *last), lines)


def _with_error(mean: float | None, error: float | None) -> str:
    """A mean, with its standard error if there are several seeds."""
    return "-" if mean is None else f"{mean:.1f}" if error is None else f"{mean:.1f} ± {error:.1f}"
