"""The folder of one run, named after a digest of its configuration: what a run writes while it trains."""

import contextlib
import io
import json
import platform
import re
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import polars as pl
import torch
from filelock import FileLock
from fsspec.implementations.local import LocalFileSystem

import supple
from supple.errors import is_written_for_users
from supple.runs.digests import BLANK, verified, with_digest
from supple.runs.files import files_at, read, write
from supple.runs.store import DAMAGED, SCHEMA, first_line, name_of, read_folder, text_of

PARTIAL = re.compile(r"\.(run\.json|environment\.json|metrics\.parquet|checkpoint(-after-\d+)?\.pt)\.[^/]+\.\d+")
"""The temporary names that :func:`write` uses for a run's files."""


KEPT = "checkpoint-after-{}.pt"
"""The name of a checkpoint that is kept."""


class Checkpoint(NamedTuple):
    """Everything needed to continue after the last finished task."""

    finished: int
    """How many tasks are finished."""
    state: dict[str, Any]
    rows: pl.DataFrame
    """All measurements so far."""
    seconds: float
    """Training time so far."""


class RunFolder:
    """The folder of one run.

    ====================  ===========================================================================
    ``run.json``          the configuration
    ``environment.json``  hardware, software versions and training time
    ``metrics.parquet``   one row per measurement: member, task, metric, value
    ``checkpoint.pt``     everything needed to continue after the last finished task
    ====================  ===========================================================================

    Checkpoints after other tasks may be kept as ``checkpoint-after-10.pt`` and so on.

    Args:
        root: the folder of all runs: a path, or an address that fsspec understands (``s3://bucket/runs``, ...).
        config: plain values; the folder's name starts with ``problem`` and ``method`` and ends with a digest of all.
    """

    def __init__(self, root: str, config: Mapping[str, Any]) -> None:
        self._config = text_of(config)
        self.name = name_of(config)
        self._files, folder = files_at(root)
        self.path = f"{folder}/{self.name}"
        self._facts: dict[str, Any] = {}

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder; wait while another process trains this run. The lock is released if this process dies.

        On storage without locks (an object store) two processes may do the same work, without harm.
        """
        self._files.makedirs(self.path, exist_ok=True)
        local = isinstance(self._files, LocalFileSystem)
        with FileLock(f"{self.path}/.lock") if local else contextlib.nullcontext():
            for path in self._files.ls(self.path, detail=False) if local else ():
                if PARTIAL.fullmatch(path.rpartition("/")[2]) and self._files.isfile(path):
                    self._files.rm_file(path)  # left behind by a killed process
            yield

    def begin(self, **facts: Any) -> Checkpoint | None:
        """Write the configuration and the environment, including ``facts``; return the checkpoint, if there is one.

        A checkpoint that can't be read counts as none: the run restarts, with the same results.
        """
        checkpoint = self.checkpoint()
        self._facts = hardware_and_versions(**facts)
        self._write("run.json", self._config.encode())
        self._write_environment(checkpoint.seconds if checkpoint else 0.0)
        if checkpoint:  # the rows may be missing or damaged
            self._write("metrics.parquet", _parquet(checkpoint.rows))
        return checkpoint

    def finished(self, tasks: int) -> bool:
        """Whether all ``tasks`` have been measured, and the files can be read."""
        try:
            return read_folder(self._files, self.path).rows["task"].n_unique() == tasks
        except DAMAGED:
            return False

    def save(self, checkpoint: Checkpoint, *, keep: bool = False) -> None:
        """Save the state after a finished task, with all rows so far; ``keep`` saves a second copy that stays."""
        rows = _parquet(checkpoint.rows)
        self._write_environment(checkpoint.seconds)
        self._write("metrics.parquet", rows)
        # Last, because a resumed run trusts the checkpoint, and writes the rows in it again.
        buffer = io.BytesIO()
        torch.save(checkpoint._asdict() | {"rows": torch.frombuffer(bytearray(rows), dtype=torch.uint8)}, buffer)
        content = with_digest(buffer.getvalue() + BLANK)  # torch.load() ignores what follows
        for name in [KEPT.format(checkpoint.finished)] * keep + ["checkpoint.pt"]:
            self._write(name, content)

    def checkpoint(self) -> Checkpoint | None:
        """The checkpoint, if there is one; one that can't be read counts as none, with a warning."""
        if not self._files.exists(f"{self.path}/checkpoint.pt"):
            return None
        try:
            return self._read("checkpoint.pt")
        except DAMAGED as error:
            warnings.warn(
                f"{self.path}/checkpoint.pt can't be read, the run restarts: {first_line(error)}", stacklevel=3
            )
            return None

    def checkpoint_after(self, tasks: int | None = None) -> Checkpoint:
        """The checkpoint after ``tasks`` tasks, the last one when left out; a run that is training is not disturbed.

        Raises:
            ValueError: if there is none, or it can't be read.
        """
        names = {file.rpartition("/")[2] for file in self._files.ls(self.path, detail=False)}
        kept = sorted(int(match[1]) for name in names if (match := re.fullmatch(KEPT.format(r"(\d+)"), name)))
        try:
            if tasks in kept:
                return self._read(KEPT.format(tasks))
            if "checkpoint.pt" not in names:
                raise ValueError(f"expected a checkpoint in {self.path}, got none: train the run for a task first")
            last = self._read("checkpoint.pt")
        except DAMAGED as error:
            if is_written_for_users(error):
                raise
            raise ValueError(
                f"expected checkpoints that can be read in {self.path}, got a damaged one ({first_line(error)}): "
                "train the run again in another folder"
            ) from error
        if tasks not in (None, last.finished):
            known = ", ".join(str(number) for number in sorted({*kept, last.finished}))
            raise ValueError(
                f"expected a checkpoint after {tasks} tasks in {self.path}, got those after {known}: choose one of "
                "them, or train with --keep-checkpoints in another folder"
            )
        return last

    def _read(self, name: str) -> Checkpoint:
        content = io.BytesIO(verified(read(self._files, f"{self.path}/{name}")))
        stored = torch.load(content, map_location="cpu", weights_only=True)  # the next machine may lack the device
        checkpoint = Checkpoint(rows=pl.read_parquet(stored.pop("rows").numpy().tobytes()), **stored)
        if [*map(type, checkpoint)] != [int, dict, pl.DataFrame, float] or checkpoint.rows.schema != SCHEMA:
            raise ValueError("it is not a checkpoint of this version")
        return checkpoint

    def forget(self) -> None:
        """Remove the checkpoint and the measurements of a run that can't be resumed and must restart."""
        for name in ("metrics.parquet", "checkpoint.pt"):
            self._files.rm_file(f"{self.path}/{name}")

    def _write_environment(self, seconds: float) -> None:
        facts = self._facts | {"seconds": round(seconds, 1)}
        self._write("environment.json", json.dumps(facts, indent=2).encode())

    def _write(self, name: str, content: bytes) -> None:
        write(self._files, f"{self.path}/{name}", content)


def _parquet(rows: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    rows.write_parquet(buffer, metadata={"supple": BLANK.decode()})
    return with_digest(buffer.getvalue())


def hardware_and_versions(**facts: Any) -> dict[str, Any]:
    """Facts besides the configuration that a result may depend on: hardware and software versions."""
    return {
        "supple": supple.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "began": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        **facts,
    }
