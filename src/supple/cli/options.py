"""The options that several commands share, in dataclasses whose field docstrings are the help texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from supple.lab.problem import Scale

if TYPE_CHECKING:
    import polars as pl

    from supple.lab.run import Run
    from supple.rl.run import Run as Agents
    from supple.runs.sweep import Job, Work

# Heavy modules are imported where they are used, so that help texts appear at once.


Methods = Annotated[tuple[str, ...], tyro.conf.arg(name="method", aliases=["--methods"], metavar="NAME ...")]
Numbers = Annotated[tuple[float, ...], tyro.conf.arg(metavar="NUMBER ...", help_behavior_hint="")]


Precision = Literal["highest", "high", "medium"]
Options = Annotated[
    dict[str, int | float | str] | None, tyro.conf.arg(metavar="[NAME VALUE ...]", help_behavior_hint="")
]


def with_booleans(options: Mapping[str, int | float | str] | None) -> dict[str, Any]:
    """A method's options as its class takes them, from those of the command line."""
    truth = {"true": True, "false": False}
    return {name: truth.get(str(value).lower(), value) for name, value in (options or {}).items()}


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Where to train, and where results go."""

    out: Annotated[str, tyro.conf.arg(metavar="FOLDER")] = "runs"
    """Where results and charts go: a folder, or any address that fsspec understands (`s3://bucket/runs`). Finished runs
    there are not trained again; an interrupted run resumes after its last finished task."""
    engine: Literal["local", "ray"] = "local"
    """Processes on this machine, or tasks on a Ray cluster (needs the extra `ray`)."""
    address: Annotated[str | None, tyro.conf.arg(metavar="ADDRESS", help_behavior_hint="")] = None
    """Address of an existing Ray cluster, such as `auto`; a local one is started when left out."""
    gpus: Annotated[float, tyro.conf.arg(metavar="SHARE")] = 0.0
    """With Ray: the share of a GPU that each run takes."""
    workers: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """Processes at a time; as many as the cores allow when left out."""
    threads: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """CPU threads per process; more than one helps only large networks on an idle machine, and changes rounding."""
    tensorboard: Annotated[str | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")] = None
    """Also write the measurements as TensorBoard events to this folder, one TensorBoard run per network."""

    def train(self, members: Sequence["Run"], keep: int | None = None) -> "pl.DataFrame":
        """Train the members that are missing; return the measurements of all.

        Mistakes in options and in the user's own code are detected before anything is written or started.

        Args:
            members: a run for each network.
            keep: keep a checkpoint after every ``keep`` tasks; only the last when left out.
        """
        from functools import partial

        from supple.lab.dry_run import dry_run
        from supple.lab.grid import missing, results
        from supple.lab.trainer import train
        from supple.training.methods import title_of

        if keep is not None and keep < 1:
            raise ValueError(
                f"expected --keep-checkpoints of at least 1, got {keep}: leave it out to keep only the last"
            )
        self.check()
        runs, wanted = missing(members, self.out), len(set(members))
        dry_run(runs)
        done = wanted - sum(len(run.seeds) for run in runs)
        work = partial(train, root=self.out, pieces=2, keep=keep)
        lengths = {run: (title_of(run.method), run.tasks) for run in runs}
        self.work_through(lengths, work, done=done, wanted=wanted)
        rows = results(members, self.out)
        self.mirror(rows)
        return rows

    def train_agents(self, runs: Sequence["Agents"], device: str = "cpu") -> "pl.DataFrame":
        """Train the agents that are missing; return the measurements of all, with a column ``step``.

        Mistakes are detected before anything is written or started.
        """
        from functools import partial

        from supple.rl.charts import with_steps
        from supple.rl.dry_run import dry_run
        from supple.rl.run import results
        from supple.rl.train import train
        from supple.training.methods import title_of

        self.check()
        missing = [run for run in runs if not run.folder(self.out).finished(run.evaluations)]
        for run in {(run.problem, run.method, run.options): run for run in missing}.values():
            dry_run(run, root=self.out, device=device)
        lengths = {run: (title_of(run.method), run.work_until(run.steps)) for run in missing}
        work = partial(train, root=self.out, device=device)
        self.work_through(lengths, work, done=len(runs) - len(missing), wanted=len(runs))
        rows = with_steps(results(runs, self.out))
        self.mirror(rows.with_columns(task="step"))
        return rows

    def work_through(
        self, lengths: "Mapping[Job, tuple[str, float]]", work: "Work[Job]", *, done: int, wanted: int
    ) -> None:
        """Do all jobs on the engine and show their progress.

        Args:
            lengths: for each job, its label in the display and the amount of work that it reports at its end.
            work: as :func:`supple.runs.sweep.work_through` takes it.
            done: the number of networks that are trained already.
            wanted: the number of networks in all.
        """
        from functools import partial

        from supple.runs import cluster, sweep
        from supple.runs.progress import progress_of

        if done:
            print(f"{done} of {wanted} already done in {self.out}")
        if not lengths:
            return
        with progress_of(lengths) as report:
            engine = sweep.work_through
            if self.engine == "ray":
                engine = partial(cluster.work_through, gpus=self.gpus, address=self.address)
            engine(lengths, work, workers=self.workers, threads=self.threads, report=report)

    def mirror(self, rows: "pl.DataFrame") -> None:
        """Write TensorBoard events, if a folder for them is given."""
        from supple.runs import tensorboard

        if self.tensorboard is not None:
            tensorboard.mirror(rows, self.tensorboard)

    def check(self) -> None:
        """Check that these options are valid, and that the folder, TensorBoard and the cluster can be used."""
        from supple.runs import cluster, sweep, tensorboard
        from supple.runs.files import check_writable

        check_writable(self.out)
        if self.tensorboard is not None:
            tensorboard.check(self.tensorboard)
        if self.address is not None and self.workers is not None:
            raise ValueError(
                f"expected no --workers with --address, got {self.workers}: leave it out, the cluster decides"
            )
        if self.engine == "ray":
            cluster.check(self.gpus, self.address)
        elif self.gpus or self.address is not None:
            raise ValueError("expected --engine ray with --gpus or --address, got the local engine: add --engine ray")
        if self.address is None:
            sweep.check(self.workers, self.threads)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Changes to the problem and its training protocol; an option that is left out keeps the problem's value."""

    scale: Scale = "quick"
    """`quick` takes minutes on two cores and shows the effect; `paper` is the published protocol; `reduced` (problems
    with ResNet-18 only) uses a narrower network and takes about six minutes on one core."""
    data: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")] = None
    """A data set by name, a folder of `train-*.parquet`, or `package.module:function`."""
    examples: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """Number of training images, evenly spaced over the data set."""
    shift: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")] = None
    """How the problem changes: a name, or `package.module:function`."""
    model: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")] = None
    """The network: a name, or `package.module:function`, called with the data set."""
    optimizer: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")] = None
    """A name from `supple list`, such as `adam` or `sgd`."""
    batch_size: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """Images per step."""
    epochs: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """Epochs per task."""
    tasks: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """Number of tasks, one after the other."""
    matmul_precision: Precision = "highest"
    """Precision of float32 matrix products in training steps. `high` lets a GPU round inputs to TensorFloat32; `medium`
    also lets a CPU use bfloat16, if it has units for it: twice as fast for the 4x256 MLP. Measurements stay exact."""
    autocast: Annotated[Literal["bfloat16"] | None, tyro.conf.arg(help_behavior_hint="")] = None
    """Run training steps under `torch.autocast`, with `channels_last` images. This speeds up large networks on
    processors with bfloat16 units; others become slower. Parameters, optimizer and measurements stay float32."""
    diagnostics: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="[NAME ...]", help_behavior_hint="")] = None
    """Diagnostics of the networks at each task's end, from `supple list`; a dozen of them when left out, none for
    `--diagnostics` without names."""
    keep_checkpoints: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """Keep a checkpoint after every N tasks, for `supple test --after`; only the last one when left out. This changes
    no result; finished runs are not trained again for it."""
    option: Options = None
    """Keyword arguments of the method's class except its strength, such as `exponent 4` of `spectral`."""

    def changes(self) -> dict[str, Any]:
        """The arguments for :meth:`supple.lab.run.Run.of`."""
        return {
            "scale": self.scale,
            "options": with_booleans(self.option),
            "matmul_precision": self.matmul_precision,
            "autocast": self.autocast,
            "diagnostics": self.diagnostics,
            "dataset": self.data,
            "examples": self.examples,
            "shift": self.shift,
            "model": self.model,
            "optimizer": self.optimizer,
            "batch_size": self.batch_size,
            "epochs": self.epochs,
            "tasks": self.tasks,
        }
