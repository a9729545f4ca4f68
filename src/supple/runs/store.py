"""Runs on disk: one folder a run, named after the content of its configuration, every file whole or not there."""

import hashlib
import json
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import torch

import supple

Row = tuple[int, int, str, float]
SCHEMA = {"seed": pl.Int64, "task": pl.Int64, "metric": pl.String, "value": pl.Float64}


class RunFolder:
    """Where one run lives.

    ====================  ===========================================================================
    ``run.json``          the configuration
    ``environment.json``  what it ran on
    ``metrics.parquet``   one row a measurement: seed, task, metric, value
    ``checkpoint.pt``     everything needed to go on after the last finished task
    ====================  ===========================================================================

    Args:
        root: the folder of all runs.
        config: plain values; its ``problem`` and ``method`` begin the folder's name, a digest of all of it ends it.
    """

    def __init__(self, root: Path, config: Mapping[str, Any]) -> None:
        text = json.dumps(config, indent=2, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        self.path = root / f"{config['problem']}-{config['method']}-{digest}"
        self._config = text

    def begin(self, **facts: Any) -> dict[str, Any] | None:
        """Make the folder where it is missing and return its checkpoint, if any; ``facts`` join the environment."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._write("run.json", lambda path: path.write_text(self._config))
        self._write("environment.json", lambda path: path.write_text(json.dumps(environment(**facts), indent=2)))
        checkpoint = self.path / "checkpoint.pt"
        return torch.load(checkpoint, weights_only=True) if checkpoint.exists() else None

    def finished(self, tasks: int) -> bool:
        """Whether all ``tasks`` have been measured."""
        metrics = self.path / "metrics.parquet"
        return metrics.exists() and pl.read_parquet(metrics)["task"].n_unique() == tasks

    def save(self, checkpoint: dict[str, Any], rows: list[Row]) -> None:
        """Keep the state after a finished task, with all rows so far."""
        frame = pl.DataFrame(rows, schema=SCHEMA, orient="row")
        self._write("metrics.parquet", lambda path: frame.write_parquet(path))
        # Last, because what it holds is what the next start believes: rows written before it are written again.
        self._write("checkpoint.pt", lambda path: torch.save({**checkpoint, "rows": rows}, path))

    def _write(self, name: str, write: Callable[[Path], object]) -> None:
        """All of the file or nothing: a reader and a kill at any moment see the old one or the new one."""
        partial = self.path / f".{name}.{os.getpid()}"
        write(partial)
        partial.replace(self.path / name)


def load(root: Path) -> pl.DataFrame:
    """Every measurement under ``root``, each row with its run's configuration beside it."""
    frames = []
    for metrics in sorted(root.glob("*/metrics.parquet")):
        config = json.loads((metrics.parent / "run.json").read_text())
        columns = [pl.lit(value).alias(name) for name, value in config.items() if name != "seeds"]
        frames.append(pl.read_parquet(metrics).with_columns(pl.lit(metrics.parent.name).alias("run"), *columns))
    if not frames:
        raise FileNotFoundError(f"expected runs in {root}, found none: make some with `supple run` or `supple demo`")
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
        **facts,
    }
