"""Runs on disk: one folder a run, named after the content of its configuration, every file whole or not there."""

import contextlib
import hashlib
import io
import json
import os
import platform
import re
import socket
import time
import warnings
from collections.abc import Container, Iterator, Mapping
from typing import Any, NamedTuple

import fsspec
import polars as pl
import torch
from filelock import FileLock
from fsspec.implementations.local import LocalFileSystem

import supple

SCHEMA = {"member": pl.Int64, "task": pl.Int64, "metric": pl.String, "value": pl.Float64}
NO_ROWS = pl.DataFrame(schema=SCHEMA)


class Checkpoint(NamedTuple):
    """Everything that is needed to go on after the last finished task."""

    finished: int
    """How many tasks are behind."""
    state: dict[str, Any]
    rows: pl.DataFrame
    """What has been measured so far."""
    seconds: float
    """How long it took so far."""


class RunFolder:
    """Where one run lives.

    ====================  ===========================================================================
    ``run.json``          the configuration
    ``environment.json``  what it ran on, and how long
    ``metrics.parquet``   one row a measurement: member, task, metric, value
    ``checkpoint.pt``     everything needed to go on after the last finished task
    ====================  ===========================================================================

    Args:
        root: the folder of all runs: a path, or an address that fsspec understands (``s3://bucket/runs``, ...).
        config: plain values; its ``problem`` and ``method`` begin the folder's name, a digest of all of it ends it.
    """

    def __init__(self, root: str, config: Mapping[str, Any]) -> None:
        text = json.dumps(config, indent=2, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        self.name = re.sub(r"[^\w-]", "-", f"{config['problem']}-{config['method']}") + f"-{digest}"
        self._files, folder = fsspec.url_to_fs(root)
        self.path = f"{folder}/{self.name}"
        self._config = text
        self._facts: dict[str, Any] = {}

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Have the folder alone, waiting for whoever else trains this run; it is free again when this process dies.

        Where there are no locks (an object store) two processes may do the same work; they do each other no harm.
        """
        self._files.makedirs(self.path, exist_ok=True)
        local = isinstance(self._files, LocalFileSystem)
        with FileLock(f"{self.path}/.lock") if local else contextlib.nullcontext():
            for path in self._files.ls(self.path, detail=False) if local else ():
                if "/." in path.removeprefix(self.path) and not path.endswith("/.lock"):
                    self._files.rm_file(path)  # half a file, left by a process that was killed
            yield

    def begin(self, **facts: Any) -> Checkpoint | None:
        """Write down what is run, and on what (``facts`` join the environment); return where to go on, if anywhere.

        A checkpoint that can't be read counts as none: the run starts again, and ends with the same numbers.
        """
        self._facts = environment(**facts)
        self._write("run.json", self._config.encode())
        self._write("environment.json", json.dumps(self._facts, indent=2).encode())
        if not self._files.exists(f"{self.path}/checkpoint.pt"):
            return None
        try:
            with self._files.open(f"{self.path}/checkpoint.pt") as file:
                found = torch.load(io.BytesIO(file.read()), weights_only=True)
            rows = pl.read_parquet(found.pop("rows").numpy().tobytes())
            checkpoint = Checkpoint(rows=rows, **found)
        except Exception as error:  # whatever a damaged file may lead to
            warnings.warn(f"{self.path}/checkpoint.pt can't be read, the run starts again: {error}", stacklevel=2)
            return None
        self._write("metrics.parquet", _parquet(rows))  # it may be missing or damaged
        return checkpoint

    def finished(self, tasks: int) -> bool:
        """Whether all ``tasks`` have been measured."""
        try:
            with self._files.open(f"{self.path}/metrics.parquet") as file:
                return pl.read_parquet(file, columns=["task"])["task"].n_unique() == tasks
        except (OSError, pl.exceptions.PolarsError):
            return False

    def save(self, checkpoint: Checkpoint) -> None:
        """Keep the state after a finished task, with all rows so far."""
        rows = _parquet(checkpoint.rows)
        timed = self._facts | {"seconds": round(checkpoint.seconds, 1)}
        self._write("environment.json", json.dumps(timed, indent=2).encode())
        self._write("metrics.parquet", rows)
        # Last, because what it holds is what the next start believes: rows written before it are written again.
        buffer = io.BytesIO()
        torch.save(checkpoint._asdict() | {"rows": torch.frombuffer(bytearray(rows), dtype=torch.uint8)}, buffer)
        self._write("checkpoint.pt", buffer.getvalue())

    def _write(self, name: str, content: bytes) -> None:
        write(self._files, f"{self.path}/{name}", content)


def write(files: fsspec.AbstractFileSystem, path: str, content: bytes) -> None:
    """All of the file or nothing: a reader and a kill at any moment see the old one or the new one."""
    folder, _, name = path.rpartition("/")
    partial = f"{folder}/.{name}.{socket.gethostname()}.{os.getpid()}"
    try:
        files.pipe_file(partial, content)
        files.mv(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            files.rm_file(partial)
        raise


def _parquet(rows: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    rows.write_parquet(buffer)
    return buffer.getvalue()


def configurations(root: str) -> dict[str, dict[str, Any]]:
    """What lies under ``root``: folder names with their configurations. Damaged ones are left out with a warning."""
    return _read(root, "run.json")


def environments(root: str) -> dict[str, dict[str, Any]]:
    """The same with what each of them ran on, and with its ``seconds`` once a task is finished."""
    return _read(root, "environment.json")


def _read(root: str, name: str) -> dict[str, dict[str, Any]]:
    files, folder = fsspec.url_to_fs(root)
    found = {}
    for path in sorted(files.glob(f"{folder}/*/{name}")):
        try:
            found[path.split("/")[-2]] = json.loads(files.cat_file(path))
        except ValueError:
            _warn_of(path)
    return found


def _warn_of(path: str) -> None:
    warnings.warn(f"{path} can't be read and is left out: run its sweep again to mend it", stacklevel=3)


def load(root: str, runs: Container[str] | None = None) -> pl.DataFrame:
    """Every measurement under ``root``, each row with its member's and its run's configuration beside it.

    Args:
        root: the folder of all runs.
        runs: the names of the folders to read; all when left out.

    Raises:
        FileNotFoundError: when there is none.
    """
    files, folder = fsspec.url_to_fs(root)
    frames = []
    for name, config in configurations(root).items():
        path = f"{folder}/{name}"
        if (runs is not None and name not in runs) or not files.exists(f"{path}/metrics.parquet"):
            continue
        try:
            rows = pl.read_parquet(files.cat_file(f"{path}/metrics.parquet"))
            subset = json.loads(files.cat_file(f"{path}/environment.json")).get("subset", False)
            members = pl.DataFrame({"seed": config.pop("seeds"), "strength": config.pop("strengths")})
        except (ValueError, KeyError, FileNotFoundError, pl.exceptions.PolarsError):
            _warn_of(path)
            continue
        rows = rows.join(
            members.with_row_index("member").cast({"member": pl.Int64}), on="member", maintain_order="left"
        )
        scalars = {key: value for key, value in config.items() if not isinstance(value, list)}
        columns = {**scalars, "subset": subset, "run": name}
        frames.append(rows.with_columns(pl.lit(value).alias(key) for key, value in columns.items()))
    if not frames:
        raise FileNotFoundError(f"expected runs in {root}, found none: make some with `supple run` or `supple sweep`")
    return pl.concat(frames, how="diagonal_relaxed")


def environment(**facts: Any) -> dict[str, Any]:
    """What a number may depend on besides its configuration."""
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
