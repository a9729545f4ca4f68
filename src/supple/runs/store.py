"""Reads the folders of runs, and checks what they hold."""

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Container, Mapping
from typing import Any, NamedTuple, TypeVar

import polars as pl

from supple.runs.digests import verified
from supple.runs.files import files_at, read

T = TypeVar("T")

DAMAGED = (Exception, pl.exceptions.PanicException)
"""Exceptions from reading a damaged file: torch, polars and JSON raise many kinds."""

SCHEMA = {"member": pl.Int64, "task": pl.Int64, "metric": pl.String, "value": pl.Float64}
NO_ROWS = pl.DataFrame(schema=SCHEMA)

KINDS = {"problem": str, "scale": str, "method": str, "options": str, "tasks": int, "seeds": list, "strengths": list}
"""The keys that the configuration of every kind of run must have, with their types."""


class Stored(NamedTuple):
    """The contents of a run's folder."""

    config: dict[str, Any]
    environment: dict[str, Any]
    """Hardware, software versions and training ``seconds``."""
    rows: pl.DataFrame
    """All measurements so far."""


def configurations(root: str) -> dict[str, dict[str, Any]]:
    """The configurations under ``root`` by folder name. Unreadable folders are left out, as in :func:`stored`."""
    return _read_all(root, _configuration)


def stored(root: str, runs: Container[str] | None = None) -> dict[str, Stored]:
    """The contents of the run folders under ``root``, by name, sorted.

    A folder that can't be read is left out; one warning says which and why.

    Args:
        root: the folder of all runs.
        runs: the names of the folders to read; all when left out.
    """
    return _read_all(root, read_folder, runs)


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
        raise FileNotFoundError(
            f"expected runs with a finished task in {root}, found none: make some with `supple run` or `supple sweep`, "
            "or wait for those that have begun"
        )
    return rows


def joined(runs: Mapping[str, Stored]) -> pl.DataFrame:
    """Every measurement of these runs, each row with its member's and its run's configuration as columns.

    A warning names runs whose data sets have the same name but different contents, because their results would be
    compared.
    """
    frames = []
    _warn_of_other_data(runs)
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


def _warn_of_other_data(runs: Mapping[str, Stored]) -> None:
    """Warn if runs with the same data settings were trained on different data, by their fingerprints."""
    firsts: dict[tuple[Any, ...], tuple[str, str]] = {}
    for name, (config, facts, _) in runs.items():
        if found := facts.get("data"):  # the first versions did not write it
            settings = (config.get("dataset"), config.get("examples"), facts.get("subset"))
            first, expected = firsts.setdefault(settings, (name, found))
            if found != expected:
                warnings.warn(
                    f"{name} was trained on other data than {first}, both called {settings[0]}: compare them in "
                    "separate folders, or train one of them again",
                    stacklevel=4,
                )


def _read_all(root: str, read_one: Callable[[Any, str], T], runs: Container[str] | None = None) -> dict[str, T]:
    """The result of ``read_one`` for each folder under ``root`` that has a configuration."""
    files, folder = files_at(root)
    try:
        entries = files.ls(folder, detail=True)
    except FileNotFoundError:
        return {}
    contents = {}
    # fsspec reports a link to a folder as neither a file nor a folder.
    for path in sorted(entry["name"].rstrip("/") for entry in entries if entry["type"] != "file"):
        name = path.rpartition("/")[2]
        if (runs is None or name in runs) and files.exists(f"{path}/run.json"):
            try:
                contents[name] = read_one(files, path)
            except DAMAGED as error:
                warnings.warn(f"{path} is left out: {first_line(error)}", stacklevel=3)
    return contents


def read_folder(files: Any, path: str) -> Stored:
    """The contents of one folder, checked."""
    config = _configuration(files, path)
    if not files.exists(f"{path}/metrics.parquet"):  # the run has only just started
        has_environment = files.exists(f"{path}/environment.json")
        return Stored(config, _read(files, path, "environment.json", _environment) if has_environment else {}, NO_ROWS)
    environment = _read(files, path, "environment.json", _environment)
    rows = _read(files, path, "metrics.parquet", lambda content: _rows(content, config))
    return Stored(config, environment, rows)


def _configuration(files: Any, path: str) -> dict[str, Any]:
    config = _read(files, path, "run.json", _object)
    if missing := [name for name in KINDS if name not in config]:
        raise ValueError(f"its run.json lacks {', '.join(missing)}")
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
    name = name_of(config)
    if name != path.rpartition("/")[2]:
        raise ValueError(
            f"expected the folder name {name}, as in its run.json: rename it back, unless another version wrote it"
        )
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
    rows = pl.read_parquet(verified(content))
    if rows.schema != SCHEMA or any(rows.null_count().row(0)):
        raise ValueError(f"expected the columns {', '.join(SCHEMA)} without gaps, got others")
    for name, count in (("member", len(config["seeds"])), ("task", config["tasks"])):
        if not rows[name].is_between(0, count - 1).all():
            raise ValueError(f"expected each {name} from 0 to {count - 1}, got others")
    return rows


def name_of(config: Mapping[str, Any]) -> str:
    """The name of the folder of a run with this configuration."""
    content = text_of(config)
    return file_name(f"{config['problem']}-{config['method']}-{digest(content)}")


def file_name(text: str) -> str:
    """The text with a hyphen for every character that some file systems do not allow in names."""
    return re.sub(r"[^\w-]", "-", text)


def text_of(config: Mapping[str, Any]) -> str:
    """A configuration as its file holds it; the folder's name depends on every letter."""
    return json.dumps(config, indent=2, sort_keys=True)


def digest(content: str) -> str:
    """A short digest, for names that depend on the content."""
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def _read(files: Any, path: str, name: str, parse: Callable[[bytes], T]) -> T:
    try:
        return parse(read(files, f"{path}/{name}"))
    except DAMAGED as error:
        raise ValueError(f"its {name} can't be read ({first_line(error)}): run its sweep again to repair it") from error


def _object(content: bytes) -> dict[str, Any]:
    """Parse a JSON object of plain values and lists of plain values, as tables and pages need them."""
    parsed = json.loads(content)
    if not isinstance(parsed, dict):
        raise ValueError(f"expected an object, got {type(parsed).__name__}")
    json.dumps(parsed, allow_nan=False, ensure_ascii=False).encode()  # raises for NaN, infinity and invalid text
    for name, value in parsed.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, list | dict) or (isinstance(item, int) and not -(2**63) <= item < 2**63):
                raise ValueError(f"expected a plain value as {name}, got {type(item).__name__}")
    return parsed


def first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
