"""The sections of the page: one per protocol, with its results and the commands that repeat its runs."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from supple.lab.grid import TUNING_SEEDS
from supple.lab.problems import is_online, protocol_of, title_of
from supple.report.commands import commands
from supple.report.drawings import Drawings
from supple.report.standings import TUNED, Standings, standings
from supple.runs.changes import Changes
from supple.runs.lines import words
from supple.runs.tables import CHANGED, title_with_scale

OF_MEMBERS = ("run", "member", "seed", "done", "device", "seconds")
"""The columns of :func:`supple.report.overview.members_of` that are not settings of the training."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """One protocol."""

    problem: str
    title: str
    protocol: dict[str, Any]
    changes: Changes | None
    """How the world changes."""
    methods: int
    seeds: list[int]
    """The seeds that are reported."""
    tuning_seeds: list[int]
    members: int
    finished: int
    seconds: float
    standings: Standings | None
    """None until something has been measured."""
    settings: list[dict[str, Any]]
    """Every setting with its seeds, progress, folders, and the commands that repeat it."""
    tests: list[dict[str, Any]]
    """Every plasticity test of the networks, with the network's settings."""


def sections_of(
    members: pl.DataFrame,
    rows: pl.DataFrame,
    configs: Mapping[str, dict[str, Any]],
    tests: list[dict[str, Any]],
    drawings: Drawings,
) -> list[Section]:
    """One section per protocol, in the order of ``members``; its charts are added to ``drawings``.

    Args:
        members: see :func:`supple.report.overview.members_of`.
        rows: all measurements.
        configs: configurations by run.
        tests: see :func:`supple.lab.plasticity.saved_results`.
        drawings: the page's charts.
    """
    if members.is_empty():
        return []
    protocol = [name for name in members.columns if name not in (*TUNED, *OF_MEMBERS)]
    sections = []
    for part in members.partition_by(protocol, maintain_order=True):
        problem = part["problem"][0]
        siblings = members.filter(pl.col("problem") == problem)
        in_title = ("scale", "subset", "change", "change_every")
        differing = [name for name in protocol if name not in in_title and siblings[name].n_unique() > 1]
        title = title_with_scale(part, title_of(problem), protocol_of(problem, part["scale"][0]))
        values = {name: "all" if name == "examples" and part[name][0] is None else part[name][0] for name in differing}
        shortened = {name for name in ("tasks", "epochs", "examples", "steps") if re.search(rf"\d {name}\b", title)}
        settings = [
            f"{CHANGED.get(name, words(name))} {value}"
            for name, value in values.items()
            if value is not None and name not in shortened
        ]
        title = ", ".join([title, *(setting for setting in settings if setting not in title)])
        measured, first, changes = _rows_of(part, rows), part.row(0, named=True), Changes.of(part)
        evaluated = (first["evaluate_every"], first["steps"]) if first.get("evaluate_every") else None
        sections.append(
            Section(
                problem=problem,
                title=title,
                # Runs of other kinds, in the same folder, have settings that these do not have.
                protocol={words(name): first[name] for name in protocol if name in configs[first["run"]]},
                changes=changes,
                methods=part["method"].n_unique(),
                seeds=part["seed"].filter(part["seed"] < TUNING_SEEDS).to_list(),
                tuning_seeds=part["seed"].filter(part["seed"] >= TUNING_SEEDS).to_list(),
                members=len(part),
                finished=int((part["done"] >= part["tasks"]).sum()),
                seconds=float(part["seconds"].sum()),
                standings=None
                if measured.is_empty()
                else standings(measured, drawings, evaluated, changes, is_online(problem)),
                settings=[_setting(setting, configs) for setting in part.partition_by(TUNED, maintain_order=True)],
                tests=_tests_of(part, tests),
            )
        )
    return sections


def _rows_of(members: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """The measurements of these members, with the compared settings (``TUNED``) as columns.

    If a member was trained twice, with different diagnostics, a metric that was measured twice counts once.
    """
    if rows.is_empty():
        return rows
    return (
        members.sort("done", descending=True, maintain_order=True)
        .select("run", "member", "seed", *TUNED, "tasks")
        .join(
            rows.select("run", "member", "task", "metric", "value"), on=["run", "member"], maintain_order="left_right"
        )
        .unique([*TUNED, "seed", "task", "metric"], keep="first", maintain_order=True)
    )


def _setting(members: pl.DataFrame, configs: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    first = members.row(0, named=True)
    alike: dict[tuple[str, str], list[dict[str, Any]]] = {}  # runs may differ in what they measured, and where
    for row in members.to_dicts():
        shared = {key: value for key, value in configs[row["run"]].items() if key not in ("seeds", "strengths")}
        alike.setdefault((json.dumps(shared), row["device"]), []).append(row)
    repeating = []
    for (config, device), rows in alike.items():
        of_rows = {"seeds": [row["seed"] for row in rows], "strengths": [row["strength"] for row in rows]}
        repeating += commands(json.loads(config) | of_rows, device)
    return {name: first[name] for name in TUNED} | {
        "seeds": members["seed"].to_list(),
        "done": members["done"].sum(),
        "tasks": members["tasks"].sum(),
        "seconds": members["seconds"].sum(),
        "folders": members["run"].unique(maintain_order=True).to_list(),
        "commands": repeating,
    }


def _tests_of(members: pl.DataFrame, tests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tests of these members, each with its member's settings, by method, seed and number of finished tasks."""
    settings = {(row["run"], row["member"]): row for row in members.select("run", "member", "seed", *TUNED).to_dicts()}
    tested = [test | settings[key] for test in tests if (key := (test["run"], test["member"])) in settings]
    return sorted(tested, key=lambda test: (test["method"], test["strength"], test["seed"], test["after"]))
