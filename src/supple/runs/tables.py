"""Results in a terminal."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import polars as pl
from rich.box import SIMPLE_HEAD
from rich.table import Table

from supple.runs import metrics
from supple.runs.changes import Changes
from supple.runs.stats import last_count, note_on_diverged, ranking, varying
from supple.training.methods import title_of

NO_PROTOCOL: Mapping[str, Any] = MappingProxyType({})


def results_table(
    rows: pl.DataFrame, metric: str, count: int = 5, problem: str = "", protocol: Mapping[str, Any] = NO_PROTOCOL
) -> Table:
    """``metric`` of one problem in the first and the last ``count`` tasks; one line per setting, the best first.

    In reinforcement learning a task is an evaluation: a column says to which environment steps the last ones belong.

    Args:
        rows: of one problem.
        metric: what is shown.
        count: how many of the last tasks.
        problem: the problem's title; its name when left out.
        protocol: the problem's at the rows' scale, as for :func:`title_with_scale`.
    """
    count = last_count(min(rows["tasks"].unique()), count)
    has_steps = "evaluate_every" in rows.columns and rows["evaluate_every"][0] is not None
    shown = {"method", "strength", *(("steps", "tasks") if has_steps else ())}
    others = [name for name in varying(rows) if name not in shown]
    title = f"{capitalized(metrics.find(metric).title)}: {title_with_scale(rows, problem, protocol)}"
    table = Table("method", title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))  # 100 columns
    table.caption, table.caption_justify = note_on_diverged(rows, metric) or None, "left"
    steps = ["at steps"] if has_steps else []
    for heading in ("strength", *others, "first", f"last {count}", *steps, "IQM", "95 %", "seeds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in ranking(rows, metric, count).iter_rows(named=True):
        error = f" ± {row['error']:.3f}" if row["error"] is not None else ""
        diverged = f" ({row['diverged']:.0f} diverged)" if row["diverged"] else ""
        table.add_row(
            title_of(row["method"]),
            f"{row['strength']:g}" if row["strength"] else "-",
            *(_cell(row[other]) for other in others),
            "-" if row["first"] is None else f"{row['first']:.3f}",
            f"{row['mean']:.3f}{error}",
            *([_steps(row, count)] if has_steps else []),
            f"{row['iqm']:.3f}",
            f"{row['low']:.3f}, {row['high']:.3f}",
            f"{row['seeds']}{diverged}",
        )
    return table


def _cell(value: Any) -> str:
    """One of a row's settings; a dash if it has none."""
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def capitalized(title: str) -> str:
    """The title with a capital letter first; the others stay, as in "overestimation of Q"."""
    return title[:1].upper() + title[1:]


def _steps(row: Mapping[str, Any], count: int) -> str:
    """The environment steps before the first and before the last of the last ``count`` evaluations."""
    first, last = (row["evaluate_every"] * task for task in (row["tasks"] - count + 1, row["tasks"]))
    return f"{min(last, row['steps']):,}" if count == 1 else f"{first:,}–{min(last, row['steps']):,}"


def title_with_scale(rows: pl.DataFrame, problem: str = "", protocol: Mapping[str, Any] = NO_PROTOCOL) -> str:
    """The problem, its scale, and a note if runs are shorter, part of the data set was used, or the world changes.

    Args:
        rows: of one problem.
        problem: its title; its name when left out.
        protocol: the problem's at this scale; fewer tasks, epochs or examples than it has are named.
    """
    stamps = [f"{scale} scale" for scale in rows["scale"].unique(maintain_order=True)]
    shorter = []
    for name in ("tasks", "epochs", "examples"):
        usual, most = protocol.get(name), rows[name].max() if name in rows.columns else None
        if isinstance(usual, int) and isinstance(most, int) and most < usual:
            shorter.append(f"{most:,} of {usual:,} {name}")
    if shorter:
        stamps.append(f"shortened to {', '.join(shorter)}")
    if rows["subset"].any():
        stamps.append("part of the data set")
    if changes := Changes.of(rows):
        stamps.append(str(changes))
    return f"{problem or rows['problem'][0]} ({', '.join(stamps)})"
