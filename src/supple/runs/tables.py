"""Results in a terminal."""

import polars as pl
from rich.box import SIMPLE_HEAD
from rich.table import Table

from supple.runs import metrics
from supple.runs.stats import ranking, varying


def results_table(rows: pl.DataFrame, metric: str, count: int = 5) -> Table:
    """``metric`` of one problem in the first and the last ``count`` tasks; one line per setting, the best first."""
    count = min([count, *rows["tasks"].unique()])
    others = [column for column in varying(rows) if column not in ("method", "strength")]
    title = f"{capitalized(metrics.find(metric).title)}, {stamped(rows)}"
    table = Table("method", title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))  # 100 columns
    for heading in ("strength", *others, "first", f"last {count}", "IQM", "95 %", "seeds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in ranking(rows, metric, count).iter_rows(named=True):
        error = f" ± {row['error']:.3f}" if row["error"] is not None else ""
        diverged = f" ({row['diverged']:.0f} diverged)" if row["diverged"] else ""
        table.add_row(
            row["method"],
            f"{row['strength']:g}" if row["strength"] else "-",
            *(f"{row[other]:g}" if isinstance(row[other], float) else str(row[other]) for other in others),
            "-" if row["first"] is None else f"{row['first']:.3f}",
            f"{row['mean']:.3f}{error}",
            f"{row['iqm']:.3f}",
            f"{row['low']:.3f}, {row['high']:.3f}",
            f"{row['seeds']}{diverged}",
        )
    return table


def capitalized(title: str) -> str:
    """The title with a capital letter first; the others stay, as in "overestimation of Q"."""
    return title[:1].upper() + title[1:]


def stamped(rows: pl.DataFrame) -> str:
    """The problem's name, its scale, and a note if only part of the data set was used."""
    stamps = [f"{scale} scale" for scale in rows["scale"].unique(maintain_order=True)]
    if rows["subset"].any():
        stamps.append("part of the data set")
    return f"{rows['problem'][0]} ({', '.join(stamps)})"
