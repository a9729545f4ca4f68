"""What benchmarks share: variants that take turns, the machine's limits, results with their environment."""

import json
import time
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from rich.progress import track

from supple.report.overview import HARDWARE
from supple.runs.folder import hardware_and_versions
from supple.runs.store import stored

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def use_threads(count: int = 1) -> None:
    """Set torch's threads; timings on one thread vary least on shared cores. Denormal numbers count as 0."""
    torch.set_num_threads(count)
    torch.set_flush_denormal(True)


def take_turns(
    variants: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.thread_time
) -> dict[str, list[float]]:
    """The seconds of every call of each variant; the variants take turns, and a first round warms up.

    The default clock is the processor time of this thread, which depends least on other processes.
    """
    names, seconds = list(variants), {name: list[float]() for name in variants}
    for turn in track(range(-1, rounds), description="timing"):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = clock()
            variants[name]()
            if turn >= 0:
                seconds[name].append(clock() - start)
    return seconds


def repeated(count: int, step: Callable[[], object]) -> Callable[[], None]:
    """A function that calls ``step`` ``count`` times."""

    def steps() -> None:
        for _ in range(count):
            step()

    return steps


def ratios(numerators: Iterable[float], denominators: Iterable[float]) -> list[float]:
    """The ratio of each round."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def bandwidth(rounds: int) -> float:
    """Bytes per second read and written in adding two tensors much larger than the caches."""
    a, b = torch.zeros(64 * 2**20), torch.ones(64 * 2**20)
    seconds = take_turns({"add": lambda: a.add_(b)}, rounds)["add"]
    return 3 * a.nbytes / min(seconds)


def arithmetic(rounds: int) -> float:
    """Multiply-adds per second in a large matrix product."""
    a = torch.randn(1024, 1024)
    return 1024**3 / min(take_turns({"product": lambda: a @ a}, rounds)["product"])


def plateau(strengths: pl.Series, means: pl.Series, floor: float) -> float:
    """The decades of strength over which accuracy, interpolated linearly, is at least ``floor``."""
    decades = strengths.log10().to_numpy()
    fine = np.linspace(decades.min(), decades.max(), 10_001)
    return float(np.ptp(decades) * np.mean(np.interp(fine, decades, means.to_numpy()) >= floor))


def with_error(mean: float, error: float | None, digits: int = 3) -> str:
    """A mean as text, with its standard error if there is one."""
    return _with_minus(f"{mean:.{digits}f}" if error is None else f"{mean:.{digits}f} ± {error:.{digits}f}")


def with_interval(compared: Mapping[str, Any], digits: int = 3) -> str:
    """A row of :func:`supple.runs.stats.paired` as text: the difference, with its interval if there is one."""
    difference, low, high = (compared[name] for name in ("difference", "low", "high"))
    interval = "" if low is None else f" ({low:+.{digits}f} to {high:+.{digits}f})"
    return _with_minus(f"{difference:+.{digits}f}{interval}")


def _with_minus(text: str) -> str:
    return text.replace("-", "−")


def write(path: Path | None, config: "DataclassInstance", **results: Any) -> None:
    """Write results as JSON, with the environment and the configuration that gave them; nothing without a path."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"environment": hardware_and_versions(), "config": settings(config), **results}
        path.write_text(json.dumps(content, indent=1) + "\n")


def settings(config: "DataclassInstance") -> dict[str, Any]:
    """A configuration as JSON holds it, without paths, which change no result."""
    values = {name: None if isinstance(value, Path) else value for name, value in asdict(config).items()}
    found: dict[str, Any] = json.loads(json.dumps(values))
    return found


def put_into(page: Path, name: str, lines: Iterable[str]) -> None:
    """Put lines into a page, in place of those between its markers ``<!-- name -->`` and ``<!-- end of name -->``."""
    start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, found, rest = page.read_text().partition(start)
    _, also_found, after = rest.partition(end)
    if not (found and also_found):
        raise ValueError(f"expected {start.strip()} and {end} in {page}, got one or none of them: restore the markers")
    page.write_text("\n".join([before + start, *lines, "", end + after]))


def write_environment(folder: Path, root: str | None = None, runs: Container[str] = ()) -> None:
    """Write the environment beside tables or charts, and those that their runs were trained in, with their seconds.

    Of runs that are not under ``root``, because another machine trained them, what was written before is kept.
    """
    path, facts = folder / "environment.json", {}
    if root is not None:
        seconds = dict[tuple[Any, ...], dict[str, float]]()
        found = {name: run.environment for name, run in stored(root, runs).items()}
        for name, environment in found.items():
            machine = tuple(environment.get(fact) for fact in HARDWARE)
            seconds.setdefault(machine, {})[name] = environment["seconds"]
        for entry in json.loads(path.read_text()).get("trained_in", ()) if path.exists() else ():
            others = {name: value for name, value in entry["runs"].items() if name in runs and name not in found}
            if others:
                seconds.setdefault(tuple(entry[fact] for fact in HARDWARE), {}).update(others)
        facts["trained_in"] = [
            dict(zip(HARDWARE, machine, strict=True)) | {"runs": dict(sorted(of_runs.items()))}
            for machine, of_runs in seconds.items()
        ]
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(hardware_and_versions(**facts), indent=1) + "\n")
