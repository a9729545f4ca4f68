"""Runs on disk: one folder a run, named after the content of its configuration, every file whole or not there."""

import contextlib
import glob
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
from supple.runs.sealed import BLANK, checked, sealed

DAMAGED = (OSError, ValueError, KeyError, TypeError)
"""What reading a file may raise that was cut off, overwritten or changed in any bit."""

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
        self._config = json.dumps(config, indent=2, sort_keys=True)
        digest = hashlib.sha256(self._config.encode()).hexdigest()[:12]
        self.name = re.sub(r"[^\w-]", "-", f"{config['problem']}-{config['method']}") + f"-{digest}"
        self._files, folder = files_at(root)
        self.path = f"{folder}/{self.name}"
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
        checkpoint = self.checkpoint()
        self._facts = environment(**facts)
        self._write("run.json", self._config.encode())
        self._write_environment(checkpoint.seconds if checkpoint else 0.0)
        if checkpoint:  # the rows may be missing or damaged
            self._write("metrics.parquet", _parquet(checkpoint.rows))
        return checkpoint

    def finished(self, tasks: int) -> bool:
        """Whether all ``tasks`` have been measured, and what is told of them can be read."""
        try:
            rows, _ = _measured(self._files, self.path)
            whole = self._files.cat_file(f"{self.path}/run.json") == self._config.encode()
        except DAMAGED:
            return False
        return whole and rows["task"].n_unique() == tasks

    def save(self, checkpoint: Checkpoint) -> None:
        """Keep the state after a finished task, with all rows so far."""
        rows = _parquet(checkpoint.rows)
        self._write_environment(checkpoint.seconds)
        self._write("metrics.parquet", rows)
        # Last, because what it holds is what the next start believes: rows written before it are written again.
        buffer = io.BytesIO()
        torch.save(checkpoint._asdict() | {"rows": torch.frombuffer(bytearray(rows), dtype=torch.uint8)}, buffer)
        self._write("checkpoint.pt", sealed(buffer.getvalue() + BLANK))  # torch.load() passes over what follows

    def checkpoint(self) -> Checkpoint | None:
        """Where to go on, if anywhere; one that can't be read counts as none, with a warning."""
        path = f"{self.path}/checkpoint.pt"
        if not self._files.exists(path):
            return None
        try:
            content = io.BytesIO(checked(self._files.cat_file(path)))
            found = torch.load(content, map_location="cpu", weights_only=True)  # the next machine may lack the device
            return Checkpoint(rows=pl.read_parquet(found.pop("rows").numpy().tobytes()), **found)
        except DAMAGED as error:
            warnings.warn(f"{path} can't be read, the run starts again: {error}", stacklevel=3)
            return None

    def forget(self) -> None:
        """Remove the checkpoint, before a run starts again that could no longer go on from it."""
        self._files.rm_file(f"{self.path}/checkpoint.pt")

    def _write_environment(self, seconds: float) -> None:
        facts = self._facts | {"seconds": round(seconds, 1)}
        self._write("environment.json", json.dumps(facts, indent=2).encode())

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


def files_at(root: str) -> tuple[Any, str]:
    """The file system and the folder of an address; what other processes write there is seen at once."""
    files, folder = fsspec.url_to_fs(root, use_listings_cache=False)
    return files, folder


def _parquet(rows: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    rows.write_parquet(buffer, metadata={"supple": BLANK.decode()})
    return sealed(buffer.getvalue())


def _object(content: bytes) -> dict[str, Any]:
    found = json.loads(content)
    if not isinstance(found, dict):
        raise ValueError(f"expected an object, got {type(found).__name__}")
    return found


def _measured(files: Any, path: str) -> tuple[pl.DataFrame, dict[str, Any]]:
    """What was measured in a run's folder, and what it ran on."""
    rows = pl.read_parquet(checked(files.cat_file(f"{path}/metrics.parquet")))
    return rows, _object(files.cat_file(f"{path}/environment.json"))


def configurations(root: str) -> dict[str, dict[str, Any]]:
    """What lies under ``root``: folder names with their configurations. Damaged ones are left out with a warning."""
    files, folder = files_at(root)
    found = {}
    for path in sorted(files.glob(f"{glob.escape(folder)}/*/run.json")):
        name = path.split("/")[-2]
        try:
            config = _object(files.cat_file(path))
            if RunFolder(root, config).name != name:
                raise ValueError("the folder is named after another content")
        except DAMAGED:
            _warn_of(path)
        else:
            found[name] = config
    return found


def environments(root: str) -> dict[str, dict[str, Any]]:
    """The same with what each of them ran on, and with its ``seconds``."""
    files, folder = files_at(root)
    found = {}
    for path in sorted(files.glob(f"{glob.escape(folder)}/*/environment.json")):
        try:
            found[path.split("/")[-2]] = _object(files.cat_file(path))
        except DAMAGED:
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
    files, folder = files_at(root)
    frames = []
    for name, config in configurations(root).items():
        path = f"{folder}/{name}"
        if (runs is not None and name not in runs) or not files.exists(f"{path}/metrics.parquet"):
            continue
        if not config.keys() >= {"seeds", "strengths"}:
            warnings.warn(f"{path} is a run of another kind and is left out", stacklevel=2)
            continue
        try:
            rows, facts = _measured(files, path)
            members = pl.DataFrame({"seed": config.pop("seeds"), "strength": config.pop("strengths")})
        except DAMAGED:
            _warn_of(path)
            continue
        rows = rows.join(
            members.with_row_index("member").cast({"member": pl.Int64}), on="member", maintain_order="left"
        )
        scalars = {key: value for key, value in config.items() if not isinstance(value, list)}
        columns = {**scalars, "subset": facts.get("subset", False), "run": name}
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
