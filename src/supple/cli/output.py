"""What commands print and draw: tables and curves of one problem."""

import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    import polars as pl
    from rich.table import Table

    from supple.lab.run import Run

# Heavy modules are imported where they are used, so that help texts appear at once.


def show(rows: "pl.DataFrame", members: "list[Run]", out: str, name: str = "chart") -> None:
    """Print the tables and draw the curves of one problem; the files' names depend on the runs."""
    from supple.runs.store import digest

    ending = digest(" ".join(sorted(run.folder(out).name for run in members)))
    file = f"{name}-{rows['problem'][0]}-{ending}"
    before = "" if name == "chart" else f"{name.capitalize()}: "
    draw(rows, print_tables(rows, before=before), out, file, before)
    if name == "chart":
        print_ending(out)


def print_ending(out: str) -> None:
    """Print where the runs are, and what to do next."""
    print(f"runs:  {out}")
    print(f"next:  supple report {shlex.quote(out)}")


def draw(rows: "pl.DataFrame", metric: str, out: str, name: str, before: str = "") -> None:
    """Draw the curves of one problem, agents' over steps, into the file ``name``; ``before`` begins the title."""
    import polars as pl

    from supple.lab.problems import protocol_of, title_of
    from supple.rl.charts import over_steps
    from supple.runs.changes import is_control
    from supple.runs.charts import curves_of, over_seeds, save
    from supple.runs.stats import settings
    from supple.runs.store import file_name
    from supple.runs.tables import title_with_scale
    from supple.training.methods import options_text

    problem = rows["problem"][0]
    seeds = rows.filter(metric=metric).group_by(settings(rows)).agg(pl.col("seed").n_unique())["seed"]
    title = before + title_with_scale(rows, title_of(problem), protocol_of(problem, rows["scale"][0]))
    if rows["options"].n_unique() == 1 and (options := options_text(rows["options"][0])):
        title += f", {options}"
    subtitle = over_seeds(min(seeds), max(seeds))
    chart = (over_steps if is_control(rows) else curves_of)(rows, metric, title, subtitle)
    for path in save(chart, out, file_name(name)):
        print(f"chart: {path}")


def choices(best: "set[tuple[str, float, float]]", candidates: "list[Run]") -> "Iterator[str]":
    """One line per method: its chosen strength and step size, and whether one is the smallest or largest tried."""
    for method, *chosen in sorted(best):
        tried = [run for run in candidates if run.method == method]
        parts = []
        for name, value, values in zip(
            ("strength", "step size"),
            chosen,
            ({run.strengths[0] for run in tried}, {run.step_size for run in tried}),
            strict=True,
        ):
            if len(values) > 1:
                end = {min(values): "smallest", max(values): "largest"}.get(value)
                hint = f" (the {end} tried: try {'smaller' if end == 'smallest' else 'larger'} ones too)" if end else ""
                parts.append(f"{name} {value:g}{hint}")
        if parts:
            yield f"chosen for {method}: {', '.join(parts)}"


def print_tables(rows: "pl.DataFrame", metric: str | None = None, before: str = "") -> str:
    """Print the tables of one problem; return the metric of the last one that was measured in all runs, if any was.

    Args:
        rows: of one problem.
        metric: what is shown; the problem's main metrics when left out.
        before: begins the titles.
    """
    from supple.lab.problems import is_online, protocol_of, title_of
    from supple.runs.metrics import headlines
    from supple.runs.tables import results_table

    problem = rows["problem"][0]
    main = [name for name in headlines(is_online(problem)) if name in rows["metric"]]
    metrics = [metric] if metric else main or [rows["metric"][0]]
    for metric in metrics:
        protocol = protocol_of(problem, rows["scale"][0])
        numbers = results_table(rows, metric, problem=title_of(problem), protocol=protocol)
        numbers.title = f"{before}{numbers.title}"
        print_table(numbers)
    runs = rows["run"].n_unique()
    in_all = [metric for metric in metrics if rows.filter(metric=metric)["run"].n_unique() == runs]
    return (in_all or metrics)[-1]


def print_table(numbers: "Table") -> None:
    """Print a table; if the console is too narrow for its numbers, print longer lines rather than cut numbers off."""
    from rich.console import Console

    console = Console()
    needed = console.measure(numbers, options=console.options.update(max_width=10_000)).minimum
    console.width = max(console.width, needed)
    console.print(numbers)


def table(title: str, names: str, *columns: str) -> "Table":
    """An empty table; names in its first column are never cut off, because users type them."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Column, Table

    first = Column(names, no_wrap=True)
    return Table(first, *columns, title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
