"""Runs on disk: one folder per run, named after a digest of its configuration; every file is written atomically."""

import contextlib
import hashlib
import io
import json
import os
import platform
import re
import socket
import tempfile
import time
import warnings
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import fsspec
import polars as pl
import torch
from filelock import FileLock
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

import supple
from supple.errors import is_told
from supple.runs.sealed import BLANK, checked, sealed

T = TypeVar("T")

DAMAGED = (Exception, pl.exceptions.PanicException)
"""Exceptions from reading a damaged file: torch, polars and JSON raise many kinds."""

SCHEMA = {"member": pl.Int64, "task": pl.Int64, "metric": pl.String, "value": pl.Float64}
NO_ROWS = pl.DataFrame(schema=SCHEMA)

KINDS = {"problem": str, "scale": str, "method": str, "options": str, "tasks": int, "seeds": list, "strengths": list}
"""The keys that the configuration of every kind of run must have, with their types."""

PARTIAL = re.compile(r"\.(run\.json|environment\.json|metrics\.parquet|checkpoint\.pt)\.[^/]+\.\d+")
"""The temporary names that :func:`write` uses for a run's files."""


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

    Args:
        root: the folder of all runs: a path, or an address that fsspec understands (``s3://bucket/runs``, ...).
        config: plain values; the folder's name starts with ``problem`` and ``method`` and ends with a digest of all.
    """

    def __init__(self, root: str, config: Mapping[str, Any]) -> None:
        self._config = json.dumps(config, indent=2, sort_keys=True)
        self.name = _name(config)
        self._files, folder = files_at(root)
        self.path = f"{folder}/{self.name}"
        self._facts: dict[str, Any] = {}

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
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

        A checkpoint that can't be read counts as none: the run restarts, and ends with the same numbers.
        """
        checkpoint = self.checkpoint()
        self._facts = environment(**facts)
        self._write("run.json", self._config.encode())
        self._write_environment(checkpoint.seconds if checkpoint else 0.0)
        if checkpoint:  # the rows may be missing or damaged
            self._write("metrics.parquet", _parquet(checkpoint.rows))
        return checkpoint

    def finished(self, tasks: int) -> bool:
        """Whether all ``tasks`` have been measured, and the files can be read."""
        try:
            return _stored(self._files, self.path).rows["task"].n_unique() == tasks
        except DAMAGED:
            return False

    def save(self, checkpoint: Checkpoint) -> None:
        """Save the state after a finished task, with all rows so far."""
        rows = _parquet(checkpoint.rows)
        self._write_environment(checkpoint.seconds)
        self._write("metrics.parquet", rows)
        # Last, because a resumed run trusts the checkpoint, and writes the rows in it again.
        buffer = io.BytesIO()
        torch.save(checkpoint._asdict() | {"rows": torch.frombuffer(bytearray(rows), dtype=torch.uint8)}, buffer)
        self._write("checkpoint.pt", sealed(buffer.getvalue() + BLANK))  # torch.load() ignores what follows

    def checkpoint(self) -> Checkpoint | None:
        """The checkpoint, if there is one; one that can't be read counts as none, with a warning."""
        path = f"{self.path}/checkpoint.pt"
        if not self._files.exists(path):
            return None
        try:
            content = io.BytesIO(checked(read(self._files, path)))
            found = torch.load(content, map_location="cpu", weights_only=True)  # the next machine may lack the device
            checkpoint = Checkpoint(rows=pl.read_parquet(found.pop("rows").numpy().tobytes()), **found)
            if [*map(type, checkpoint)] != [int, dict, pl.DataFrame, float] or checkpoint.rows.schema != SCHEMA:
                raise ValueError("it holds something else")
        except DAMAGED as error:
            warnings.warn(f"{path} can't be read, the run starts again: {_first_line(error)}", stacklevel=3)
            return None
        return checkpoint

    def forget(self) -> None:
        """Remove the checkpoint of a run that can't be resumed and must restart."""
        self._files.rm_file(f"{self.path}/checkpoint.pt")

    def _write_environment(self, seconds: float) -> None:
        facts = self._facts | {"seconds": round(seconds, 1)}
        self._write("environment.json", json.dumps(facts, indent=2).encode())

    def _write(self, name: str, content: bytes) -> None:
        write(self._files, f"{self.path}/{name}", content)


def read(files: fsspec.AbstractFileSystem, path: str) -> bytes:
    """All of a file.

    Raises:
        ValueError: for a pipe or a device, on which a reader would wait forever.
    """
    if isinstance(files, LocalFileSystem) and os.path.exists(path) and not os.path.isfile(path):
        raise ValueError("it is no file")
    content: bytes = files.cat_file(path)
    return content


def write(files: fsspec.AbstractFileSystem, path: str, content: bytes) -> None:
    """Write a file atomically: readers see the old or the new content, even if this process is killed.

    Raises:
        ValueError: when the path is not a regular file but a folder, a device or a socket.
    """
    if isinstance(files, LocalFileSystem) and os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"expected a file to write, got {path}, which is something else: choose another name")
    folder, _, name = path.rpartition("/")
    partial = f"{folder}/.{name}.{socket.gethostname()}.{os.getpid()}"
    try:
        files.pipe_file(partial, content)
        files.mv(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            files.rm_file(partial)
        raise


def check_writable(root: str) -> None:
    """Check that other processes can read what is written there, with a probe file that is removed again.

    Raises:
        ValueError: when they can't.
    """
    try:
        if not root:
            raise ValueError("no name")
        files, folder = files_at(root)
        if isinstance(files, LocalFileSystem):
            there = Path(folder)
            while not there.exists():
                there = there.parent
            with tempfile.TemporaryFile(dir=there):
                pass
        elif isinstance(files, MemoryFileSystem):
            raise ValueError("no other process sees this one's memory")
        else:
            probe = f"{folder}/.{socket.gethostname()}.{os.getpid()}"
            files.pipe_file(probe, b"")
            files.rm_file(probe)
    except Exception as error:  # each file system raises its own exceptions
        if is_told(error):
            raise
        why = getattr(error, "strerror", None) or error
        raise ValueError(
            f"expected a folder or an address to write to, got {root!r} ({why}): choose another"
        ) from error


def files_at(root: str) -> tuple[Any, str]:
    """The file system and the folder of an address; nothing is cached, so other processes' files are seen at once."""
    if not root:
        raise ValueError("expected a folder or an address, got an empty name: say where, such as `runs`")
    try:
        files, folder = fsspec.url_to_fs(root, use_listings_cache=False)
    except (ImportError, ValueError) as error:  # a package is missing, or no file system has this name
        raise ValueError(f"expected a folder or an address that fsspec opens, got {root!r}: {error}") from error
    return files, folder


def _parquet(rows: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    rows.write_parquet(buffer, metadata={"supple": BLANK.decode()})
    return sealed(buffer.getvalue())


class Stored(NamedTuple):
    """The contents of a run's folder."""

    config: dict[str, Any]
    environment: dict[str, Any]
    """Hardware, software versions and training ``seconds``."""
    rows: pl.DataFrame
    """All measurements so far."""


def configurations(root: str) -> dict[str, dict[str, Any]]:
    """The configurations under ``root`` by folder name. Unreadable folders are left out, as in :func:`stored`."""
    return _each(root, _configuration)


def stored(root: str, runs: Container[str] | None = None) -> dict[str, Stored]:
    """The contents of the run folders under ``root``, by name, sorted.

    A folder that can't be read is left out; one warning says which and why.

    Args:
        root: the folder of all runs.
        runs: the names of the folders to read; all when left out.
    """
    return _each(root, _stored, runs)


def load(root: str, runs: Container[str] | None = None) -> pl.DataFrame:
    """Every measurement under ``root``, each row with its member's and its run's configuration as columns.

    Args:
        root: the folder of all runs.
        runs: the names of the folders to read; all when left out.

    Raises:
        FileNotFoundError: when there are no measurements.
    """
    rows = joined(stored(root, runs))
    if rows.is_empty():
        raise FileNotFoundError(f"expected runs in {root}, found none: make some with `supple run` or `supple sweep`")
    return rows


def joined(runs: Mapping[str, Stored]) -> pl.DataFrame:
    """Every measurement of these runs, each row with its member's and its run's configuration as columns."""
    frames = []
    for name, (config, facts, rows) in runs.items():
        if rows.is_empty():
            continue
        members = pl.DataFrame({"seed": config["seeds"], "strength": config["strengths"]}).cast(
            {"strength": pl.Float64}
        )
        rows = rows.join(
            members.with_row_index("member").cast({"member": pl.Int64}), on="member", maintain_order="left"
        )
        scalars = {key: value for key, value in config.items() if not isinstance(value, list)}
        columns = {**scalars, "subset": facts.get("subset", False), "run": name}
        frames.append(rows.with_columns(pl.lit(value).alias(key) for key, value in columns.items()))
    return pl.concat(frames, how="diagonal_relaxed") if frames else pl.DataFrame()


def _each(root: str, read: Callable[[Any, str], T], runs: Container[str] | None = None) -> dict[str, T]:
    """The result of ``read`` for each folder under ``root`` that has a configuration."""
    files, folder = files_at(root)
    try:
        entries = files.ls(folder, detail=True)
    except FileNotFoundError:
        return {}
    found = {}
    # fsspec reports a link to a folder as neither a file nor a folder.
    for path in sorted(entry["name"].rstrip("/") for entry in entries if entry["type"] != "file"):
        name = path.rpartition("/")[2]
        if (runs is None or name in runs) and files.exists(f"{path}/run.json"):
            try:
                found[name] = read(files, path)
            except DAMAGED as error:
                warnings.warn(f"{path} is left out: {_first_line(error)}", stacklevel=3)
    return found


def _stored(files: Any, path: str) -> Stored:
    config = _configuration(files, path)
    if not files.exists(f"{path}/metrics.parquet"):  # the run has only just started
        there = files.exists(f"{path}/environment.json")
        return Stored(config, _read(files, path, "environment.json", _environment) if there else {}, NO_ROWS)
    environment = _read(files, path, "environment.json", _environment)
    rows = _read(files, path, "metrics.parquet", lambda content: _rows(content, config))
    return Stored(config, environment, rows)


def _configuration(files: Any, path: str) -> dict[str, Any]:
    config = _read(files, path, "run.json", _object)
    if missing := [name for name in KINDS if name not in config]:
        raise ValueError(f"its run.json is of another kind, without {', '.join(missing)}")
    for name, kind in KINDS.items():
        if type(config[name]) is not kind:
            raise ValueError(f"expected {name} in its run.json as {kind.__name__}, got {config[name]!r}")
    seeds, strengths = config["seeds"], config["strengths"]
    if (
        not len(seeds) == len(strengths) > 0
        or {*map(type, seeds)} != {int}
        or not {*map(type, strengths)} <= {int, float}
    ):
        raise ValueError(f"expected a seed and a strength for each member, got {seeds} and {strengths} in its run.json")
    name = _name(config)
    if name != path.rpartition("/")[2]:
        raise ValueError(f"expected the name {name}, which its run.json stands for: rename it back")
    return config


def _environment(content: bytes) -> dict[str, Any]:
    facts = _object(content)
    seconds, subset = facts.get("seconds", 0.0), facts.get("subset", False)
    if type(seconds) not in (int, float) or type(subset) is not bool:
        raise ValueError(f"expected seconds as a number and subset as true or false, got {seconds!r} and {subset!r}")
    if any(isinstance(fact, list) for fact in facts.values()):
        raise ValueError("expected one value of each fact, got a list")
    return facts


def _rows(content: bytes, config: Mapping[str, Any]) -> pl.DataFrame:
    rows = pl.read_parquet(checked(content))
    if rows.schema != SCHEMA or any(rows.null_count().row(0)):
        raise ValueError(f"expected the columns {', '.join(SCHEMA)} without gaps, got others")
    for name, count in (("member", len(config["seeds"])), ("task", config["tasks"])):
        if not rows[name].is_between(0, count - 1).all():
            raise ValueError(f"expected each {name} from 0 to {count - 1}, got others")
    return rows


def _name(config: Mapping[str, Any]) -> str:
    content = json.dumps(config, indent=2, sort_keys=True)
    return re.sub(r"[^\w-]", "-", f"{config['problem']}-{config['method']}") + f"-{digest(content)}"


def digest(content: str) -> str:
    """A short digest, for names that depend on the content."""
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def _read(files: Any, path: str, name: str, parse: Callable[[bytes], T]) -> T:
    try:
        return parse(read(files, f"{path}/{name}"))
    except DAMAGED as error:
        raise ValueError(f"its {name} can't be read ({_first_line(error)}): run its sweep again to mend it") from error


def _object(content: bytes) -> dict[str, Any]:
    """Parse a JSON object of plain values and lists of plain values, as tables and pages need them."""
    found = json.loads(content)
    if not isinstance(found, dict):
        raise ValueError(f"expected an object, got {type(found).__name__}")
    json.dumps(found, allow_nan=False, ensure_ascii=False).encode()  # raises for NaN, infinity and invalid text
    for name, value in found.items():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, list | dict) or (isinstance(each, int) and not -(2**63) <= each < 2**63):
                raise ValueError(f"expected a plain value as {name}, got {type(each).__name__}")
    return found


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def environment(**facts: Any) -> dict[str, Any]:
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
