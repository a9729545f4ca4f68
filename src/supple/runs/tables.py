"""Results in a terminal."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import polars as pl
from rich.box import SIMPLE_HEAD
from rich.table import Table

from supple.runs import metrics
from supple.runs.changes import Changes, is_control
from supple.runs.stats import IQM_SEEDS, last_count, note_on_diverged, ranking, settings, settings_to_show
from supple.training.methods import options_text, strength_text, title_of

NO_PROTOCOL: Mapping[str, Any] = MappingProxyType({})
CHANGED = {
    "dataset": "data",
    "shift": "shift",
    "model": "network",
    "optimizer": "optimizer",
    "step_size": "step size",
    "batch_size": "batch size",
    "matmul_precision": "matmul precision",
    "autocast": "autocast",
}
"""The settings that a title mentions if they differ from the protocol's, and their names in the title."""
OF_NO_PROTOCOL = {"matmul_precision": "highest", "autocast": None}
"""The defaults of the settings above that no protocol sets."""
AGENTS = {"steps": "{:,} steps", "preset": "preset {}", "replay_ratio": "replay ratio {}"}
"""What a title says about agents that are not at paper scale, instead of the scale."""


def results_table(
    rows: pl.DataFrame, metric: str, count: int = 5, problem: str = "", protocol: Mapping[str, Any] = NO_PROTOCOL
) -> Table:
    """``metric`` of one problem in the first and the last ``count`` tasks; one line per setting, the best first.

    In reinforcement learning a task is an evaluation: the title, or a column where they differ, says to which
    environment steps the last ones belong. Numbers have three decimals; one, if a mean is 100 or more. From four seeds
    on, the interquartile mean (IQM) is shown, with its 95 % bootstrap interval.

    Args:
        rows: of one problem.
        metric: what is shown.
        count: how many of the last tasks.
        problem: the problem's title; its name when left out.
        protocol: the problem's at the rows' scale, as for :func:`title_with_scale`.
    """
    count = last_count(max(rows["tasks"].unique()), count)
    ranked = ranking(rows, metric, count).to_dicts()
    digits = 1 if any(abs(row["mean"]) >= 100 for row in ranked) else 3
    title = f"{capitalized(metrics.find(metric).title)}: {title_with_scale(rows, problem, protocol)}"
    steps = []
    if has_steps := is_control(rows):
        steps = [_steps(row, last_count(row["tasks"], count)) for row in ranked]
        if len(set(steps)) == 1:
            title += f"; the last {count} at {steps[0]} steps" if count > 1 else f"; the last at {steps[0]} steps"
            steps = []
    has_iqm = any(row["seeds"] >= IQM_SEEDS for row in ranked)
    shown = {"method", "strength", *(("steps", "tasks") if has_steps else ())}
    others = [name for name in settings_to_show(rows) if name not in shown]
    headings = ["method", "strength", *others, "first", f"last {count}", *(["at steps"] if steps else [])]
    lines = []
    for place, row in enumerate(ranked):
        error = f" ± {row['error']:.{digits}f}" if row["error"] is not None else ""
        diverged = f" ({row['diverged']:.0f} diverged)" if row["diverged"] else ""
        lines.append(
            [
                title_of(row["method"]),
                strength_text(row["method"], row["strength"]),
                *(_cell(other, row[other]) for other in others),
                "-" if row["first"] is None else f"{row['first']:.{digits}f}",
                f"{row['mean']:.{digits}f}{error}",
                *steps[place : place + 1],
                *(_robust(row, digits) if has_iqm else []),
                f"{row['seeds']}{diverged}",
            ]
        )
    table = table_of(title, [*headings, *(["IQM", "its 95 %"] if has_iqm else []), "seeds"], lines)
    table.caption, table.caption_justify = note_on_diverged(rows, metric) or None, "left"
    return table


def _robust(row: Mapping[str, Any], digits: int) -> list[str]:
    """The interquartile mean and its interval; dashes for too few seeds."""
    if row["low"] is None:
        return ["-", "-"]
    return [f"{row['iqm']:.{digits}f}", f"{row['low']:.{digits}f}, {row['high']:.{digits}f}"]


def table_of(title: str, headings: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    """A table that is as narrow as its numbers allow: only the names in its first column wrap, at their spaces."""
    table = Table(headings[0], title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for cells in list(zip(headings, *lines, strict=True))[1:]:
        table.add_column(cells[0], justify="right", no_wrap=True, min_width=max(map(len, cells)))
    for line in lines:
        table.add_row(*line)
    return table


def _cell(name: str, value: Any) -> str:
    """One of a row's settings; a dash if it has none."""
    if name == "options":
        return options_text(value) or "-"
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def capitalized(title: str) -> str:
    """The title with a capital letter first; the others stay, as in "overestimation of Q"."""
    return title[:1].upper() + title[1:]


def _steps(row: Mapping[str, Any], count: int) -> str:
    """The environment steps of the last ``count`` evaluations, as a range."""
    first, last = (row["evaluate_every"] * task for task in (row["tasks"] - count + 1, row["tasks"]))
    return f"{min(last, row['steps']):,}" if count == 1 else f"{first:,}–{min(last, row['steps']):,}"


def title_with_scale(rows: pl.DataFrame, problem: str = "", protocol: Mapping[str, Any] = NO_PROTOCOL) -> str:
    """The problem, its scale, and how the runs differ from its protocol: shorter, on other data, in a changing world.

    Settings in which the runs differ from each other are not in the title: their table has a column for them.

    Args:
        rows: of one problem.
        problem: its title; its name when left out.
        protocol: the problem's at this scale.
    """
    common = {name: rows[name][0] for name in settings(rows) if rows[name].n_unique() == 1}
    if is_control(rows) and common.get("scale") != "paper":
        stamps = [text.format(common[name]) for name, text in AGENTS.items() if name in common]
    else:
        stamps = [f"{scale} scale" for scale in rows["scale"].unique(maintain_order=True)]
    shorter = []
    for name in ("tasks", "epochs", "examples"):
        usual, trained = protocol.get(name), rows[name].drop_nulls().to_list() if name in rows.columns else []
        if isinstance(usual, int) and trained and max(trained) < usual:
            shorter.append(f"{max(trained):,} of {usual:,} {name}")
        elif isinstance(usual, int) and trained and min(trained) > usual:
            stamps.append(f"{min(trained):,} instead of {usual:,} {name}")
        elif name == "examples" and name in protocol and usual is None and trained:
            shorter.append(f"{max(trained):,} examples")
    if shorter:
        stamps.append(f"shortened to {', '.join(shorter)}")
    for name, word in CHANGED.items():
        value = common.get(name)  # None where the configuration leaves out what is usual
        if value is not None and value != {**OF_NO_PROTOCOL, **protocol}.get(name, value):
            stamps.append(f"{word} {value}")
    if rows["subset"].any():
        stamps.append("part of the data set")
    if changes := Changes.of(rows):
        stamps.append(str(changes))
    return f"{problem or rows['problem'][0]} ({', '.join(stamps)})"
