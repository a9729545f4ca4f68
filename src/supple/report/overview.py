"""An overview of the runs: their members, progress and hardware."""

from collections.abc import Mapping
from typing import Any

import polars as pl

HARDWARE = ("platform", "processor", "device", "threads", "python", "torch", "supple")
"""Environments that differ in one of these are listed separately."""


def members_of(
    configs: Mapping[str, dict[str, Any]], environments: Mapping[str, dict[str, Any]], rows: pl.DataFrame
) -> pl.DataFrame:
    """One row per member, including members of runs that have only just started.

    Columns: the run's configuration, and ``run``, ``member``, ``seed``, ``strength``; ``done``, the finished tasks;
    ``seconds``, the member's share of its run's time; ``device``; ``subset``, whether only part of the data set was
    used.
    """
    records = []
    for run, config in configs.items():
        shared = {"step_size": None} | {name: value for name, value in config.items() if not isinstance(value, list)}
        environment, seeds = environments.get(run, {}), config["seeds"]
        shared |= {
            "run": run,
            "device": environment.get("device", "cpu"),
            "subset": environment.get("subset", False),
            "seconds": environment.get("seconds", 0.0) / len(seeds),
        }
        for member, (seed, strength) in enumerate(zip(seeds, config["strengths"], strict=True)):
            records.append(shared | {"member": member, "seed": seed, "strength": float(strength)})
    if not records:
        return pl.DataFrame()
    members = pl.DataFrame(records, infer_schema_length=None)
    if rows.is_empty():
        return members.with_columns(done=pl.lit(0))
    done = rows.group_by("run", "member").agg(done=pl.col("task").n_unique().cast(pl.Int64))
    return members.join(done, on=["run", "member"], how="left", maintain_order="left").with_columns(
        pl.col("done").fill_null(0)
    )


def under_way(members: pl.DataFrame) -> list[dict[str, Any]]:
    """For each problem and method with unfinished runs: finished tasks and all tasks, of all its runs."""
    if members.is_empty():
        return []
    parts = members.group_by("problem", "method", maintain_order=True).agg(
        pl.len().alias("members"),
        (pl.col("done") >= pl.col("tasks")).sum().alias("finished"),
        pl.col("done", "tasks").sum(),
    )
    return parts.filter(pl.col("finished") < pl.col("members")).to_dicts()


def hardware(environments: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The distinct environments, with the number of runs and the seconds of each."""
    by_key: dict[tuple[Any, ...], dict[str, Any]] = {}
    for environment in environments.values():
        key = tuple(environment.get(name) for name in HARDWARE)
        entry = by_key.setdefault(key, dict(zip(HARDWARE, key, strict=True)) | {"runs": 0, "seconds": 0.0})
        entry["runs"] += 1
        entry["seconds"] += environment.get("seconds", 0.0)
    return list(by_key.values())
