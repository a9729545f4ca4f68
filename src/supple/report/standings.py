"""The results of one protocol: curves, ranking, comparisons, sensitivity, and diagnostics of the networks."""

from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from supple.lab.grid import TUNING_SEEDS, reported
from supple.report.drawings import ChartEntry, Drawings
from supple.rl.charts import at_steps
from supple.runs.changes import Changes
from supple.runs.lines import lines_over_strengths, lines_over_tasks
from supple.runs.metrics import find, headlines, judges
from supple.runs.stats import IQM_SEEDS, last_count, note_on_diverged, paired, ranking, settings, settings_to_show
from supple.runs.tables import capitalized

TUNED = ("method", "options", "strength", "step_size")
"""The settings compared within a protocol; runs that differ in any other setting belong to another protocol."""

MAX_POINTS = 200
"""The most points of a curve: with more tasks, neighbouring tasks are averaged."""


Differences = list[dict[str, Any] | None]
"""For each setting, its difference from a reference, paired by seed."""


@dataclass(frozen=True, kw_only=True)
class Headline:
    """The results for one main metric: curves, ranking and differences."""

    title: str
    curves: ChartEntry
    ranking: list[dict[str, Any]]
    against: dict[str, Differences]
    """Differences by the name of the reference, in the order of the ranking."""
    sensitivity: ChartEntry | None
    has_iqm: bool
    """Whether some setting has enough seeds for an interquartile mean."""
    some_lag: bool
    """Whether some settings have finished fewer tasks than others."""
    diverged: bool
    """Whether any network has diverged."""
    note: str
    """A note about diverged networks."""
    learned: bool
    """Whether the ranking has the columns of :meth:`supple.runs.changes.Changes.learned`."""


@dataclass(frozen=True, kw_only=True)
class Standings:
    """All results of one protocol."""

    methods: list[str]
    unit: str
    """The unit of the horizontal axis: a task; for agents, an evaluation."""
    columns: list[str]
    """The settings, apart from the method, in which the ranked entries differ."""
    chosen_by: str | None
    """The metric that chose each method's setting, if several settings ran on the reported seeds."""
    last: int
    """The number of last tasks that the ranking averages."""
    window: int
    """The number of tasks averaged in one point of a curve."""
    headlines: list[Headline]
    inside: list[ChartEntry]
    layers: dict[str, list[ChartEntry]]
    """Charts of single layers, by the title of the metric."""


def standings(
    rows: pl.DataFrame,
    drawings: Drawings,
    evaluated: tuple[int, int] | None = None,
    changes: Changes | None = None,
    online: bool = False,
) -> Standings:
    """The results from the rows of one protocol.

    Args:
        rows: their setting columns are ``TUNED`` and ``tasks``.
        drawings: the page's charts.
        evaluated: for agents, the environment steps between two evaluations, and all their steps.
        changes: how the world changes.
        online: whether the problem's authors report online accuracy.
    """
    shown = reported(rows)
    metrics = shown["metric"].unique(maintain_order=True).to_list()
    accuracies = [name for name in headlines(online) if name in metrics] or metrics[:1]
    judge = next((name for name in judges(online) if name in metrics), accuracies[0])
    tasks = 1 + max(shown["task"].to_list())
    last, window = last_count(tasks), -(-tasks // MAX_POINTS)
    best = _best(at_furthest_task(shown), judge, last, "method", "options")
    several = len(shown.unique(TUNED)) > len(best)
    shown = shown.join(best, on=TUNED, how="semi", nulls_equal=True, maintain_order="left")
    drawn = averaged(shown, window)

    def curves(metric: str, title: str | None = None) -> ChartEntry:
        lines = lines_over_tasks(drawn, metric)
        lines = at_steps(lines, *evaluated) if evaluated else lines
        if changes:
            lines = replace(lines, changes=changes.places)
        return drawings.add(lines, title or capitalized(find(metric).axis))

    def headline(metric: str) -> Headline:
        ranked, has_worlds = ranking(at_furthest_task(shown), metric, last), bool(changes) and metric == "return"
        if changes and has_worlds:
            learned = changes.learned(at_furthest_task(shown), TUNED)
            ranked = ranked.join(learned, on=TUNED, how="left", nulls_equal=True, maintain_order="left")
        return Headline(
            title=capitalized(find(metric).title),
            curves=curves(metric),
            ranking=_placed(ranked).to_dicts(),
            against=_against(ranked, at_furthest_task(shown), metric, last),
            sensitivity=_sensitivity(rows, metric, judge, last, drawings),
            has_iqm=bool((ranked["seeds"] >= IQM_SEEDS).any()),
            some_lag=ranked["tasks"].n_unique() > 1,
            diverged=bool((ranked["diverged"] > 0).any()),
            note=capitalized(note_on_diverged(shown, metric)),
            learned=has_worlds,
        )

    others = [name for name in metrics if name not in accuracies and name != "diverged"]
    layers: dict[str, list[ChartEntry]] = {}
    for what, layer in (name.split("/", 1) for name in others if "/" in name):
        layers.setdefault(capitalized(find(what).axis), []).append(curves(f"{what}/{layer}", layer))
    return Standings(
        methods=best["method"].unique(maintain_order=True).to_list(),
        unit="evaluation" if evaluated else "task",
        columns=[name for name in TUNED[1:] if name in settings_to_show(best)],
        chosen_by=judge if several else None,
        last=last,
        window=window,
        headlines=[headline(metric) for metric in accuracies],
        inside=[curves(name) for name in others if "/" not in name],
        layers=layers,
    )


def at_furthest_task(rows: pl.DataFrame) -> pl.DataFrame:
    """Treat each setting's furthest task as its last; drop members that lag."""
    reached = pl.col("task").max() + 1
    return rows.with_columns(tasks=reached.over(settings(rows))).filter(
        reached.over("run", "member") == pl.col("tasks")
    )


def _best(rows: pl.DataFrame, metric: str, last: int, *names: str) -> pl.DataFrame:
    """The best setting for each value of ``names``, among those with the most tasks, because early tasks are easier."""
    ranked = ranking(rows, metric, last).sort("tasks", descending=True, maintain_order=True)
    return ranked.unique(names, keep="first", maintain_order=True)


def averaged(rows: pl.DataFrame, window: int) -> pl.DataFrame:
    """Average every ``window`` tasks into one row, placed at the middle task."""
    if window == 1:
        return rows
    middle = pl.min_horizontal(pl.col("task") // window * window + window // 2, pl.col("task").max())
    keys = [name for name in rows.columns if name not in ("task", "value")]
    return rows.group_by(*keys, middle, maintain_order=True).agg(pl.col("value").mean()).select(rows.columns)


def _placed(ranked: pl.DataFrame) -> pl.DataFrame:
    """Add the left end, middle and right end of each interval, in percent of the range of all; null without one."""
    places = {"left": "low", "middle": "iqm", "right": "high"}
    finite = {place: pl.col(name).fill_nan(None) for place, name in places.items()}
    lowest, highest = finite["left"].min(), finite["right"].max()
    across = pl.when(highest > lowest).then(highest - lowest).otherwise(1.0)
    return ranked.with_columns(**{place: (100 * (end - lowest) / across).round(2) for place, end in finite.items()})


def _against(ranked: pl.DataFrame, rows: pl.DataFrame, metric: str, last: int) -> dict[str, Differences]:
    """Differences of all ranked settings from the best with the most tasks and from no mitigation, by their method."""
    furthest = ranked.filter(pl.col("tasks") == pl.col("tasks").max())  # early tasks are easier
    references = {furthest["method"][0]: furthest[:1]}
    if not (none := ranked.filter(pl.col("method") == "none")[:1]).is_empty():
        references.setdefault("none", none)
    return {name: _differences(ranked, reference, rows, metric, last) for name, reference in references.items()}


def _differences(
    ranked: pl.DataFrame, reference: pl.DataFrame, rows: pl.DataFrame, metric: str, last: int
) -> Differences:
    """The differences from the reference; None for itself, and for settings with another number of finished tasks."""
    keys = settings(rows)
    theirs = rows.join(reference, on=keys, how="semi", nulls_equal=True)
    comparison = paired(rows, theirs, metric, last).filter(pl.col("tasks") == reference["tasks"][0])
    comparison = comparison.join(reference, on=keys, how="anti", nulls_equal=True)
    by_place = ranked.select(keys).with_row_index("place").join(comparison, on=keys, nulls_equal=True)
    rows_by_place = {row["place"]: row for row in by_place.to_dicts()}
    return [rows_by_place.get(place) for place in range(len(ranked))]


def _sensitivity(rows: pl.DataFrame, metric: str, judge: str, last: int, drawings: Drawings) -> ChartEntry | None:
    """The last tasks against the strength, with its best step size by ``judge``; None if each method has one strength.

    If there are tuning seeds, only these are used: then the other seeds have only the best strength.
    """
    tuning = rows.filter(pl.col("seed") >= TUNING_SEEDS)
    tried = at_furthest_task(rows if tuning.is_empty() else tuning)
    rows = tried.filter((pl.col("metric") == metric) & (pl.col("task") >= pl.col("tasks") - last))
    strengths = rows.filter(pl.col("strength") > 0).group_by("method").agg(pl.col("strength").n_unique())
    if strengths.filter(pl.col("strength") > 1).is_empty() or judge not in tried["metric"]:
        return None
    best = _best(tried, judge, last, "method", "options", "strength")
    rows = rows.join(best, on=TUNED, how="semi", nulls_equal=True, maintain_order="left").drop("tasks", "step_size")
    return drawings.add(lines_over_strengths(rows, metric), "The same against the strength")
