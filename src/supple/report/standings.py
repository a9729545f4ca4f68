"""How the methods stand on one protocol: curves, ranking, comparisons, sensitivity, and the inside of the networks."""

from dataclasses import dataclass
from typing import Any

import polars as pl

from supple.lab.grid import TUNING_SEEDS, reported
from supple.report.drawings import Drawings, Figure
from supple.runs.charts import TITLES, lines_over_strengths, lines_over_tasks
from supple.runs.stats import paired, ranking, settings
from supple.runs.tables import HEADLINES

TUNED = ("method", "options", "strength", "step_size")
"""What is compared on a protocol; whatever else differs makes another protocol."""

LAST = 5
"""Tasks at the end that count."""

MOST_POINTS = 200
"""Of a curve: of more tasks than that, neighbours are averaged."""


Differences = list[dict[str, Any] | None]
"""From a reference, seed by seed; of each setting."""


@dataclass(frozen=True, kw_only=True)
class Headline:
    """One accuracy: how it went, who is best, and by how much."""

    title: str
    curves: Figure
    ranking: list[dict[str, Any]]
    against: dict[str, Differences]
    """By what they are compared with, in the order of the ranking."""
    sensitivity: Figure | None
    behind: bool
    """Whether some have not got as far as others."""
    diverged: bool
    """Whether any network did."""


@dataclass(frozen=True, kw_only=True)
class Standings:
    """All that the measurements of one protocol say."""

    methods: list[str]
    columns: list[str]
    """The settings besides the method in which those of the ranking differ."""
    chosen_by: str | None
    """What each method's setting was chosen by, where several ran on the seeds that are shown."""
    last: int
    """How many tasks at the end count."""
    window: int
    """How many tasks a point of a curve stands for."""
    headlines: list[Headline]
    inside: list[Figure]
    layers: dict[str, list[Figure]]
    """What was measured of single layers, by what it is."""


def standings(rows: pl.DataFrame, drawings: Drawings) -> Standings:
    """Of the rows of one protocol; their columns besides those measured are TUNED and ``tasks``."""
    shown = reported(rows)
    metrics = shown["metric"].unique(maintain_order=True).to_list()
    accuracies = [name for name in HEADLINES if name in metrics] or metrics[:1]
    judge = next((name for name in ("validation_accuracy", "train_accuracy") if name in metrics), accuracies[0])
    tasks = 1 + max(shown["task"].to_list())
    last, window = min(LAST, tasks), -(-tasks // MOST_POINTS)
    best = _best(so_far(shown), judge, last, "method", "options")
    several = len(shown.unique(TUNED)) > len(best)
    shown = shown.join(best, on=TUNED, how="semi", nulls_equal=True, maintain_order="left")
    drawn = averaged(shown, window)

    def curves(metric: str, title: str | None = None) -> Figure:
        return drawings.add(lines_over_tasks(drawn, metric), title or _title(metric))

    def headline(metric: str) -> Headline:
        ranked = ranking(so_far(shown), metric, last)
        return Headline(
            title=_title(metric).removesuffix(" at the task's end"),
            curves=curves(metric),
            ranking=_placed(ranked).to_dicts(),
            against=_against(ranked, so_far(shown), metric, last),
            sensitivity=_sensitivity(rows, metric, last, drawings),
            behind=ranked["tasks"].n_unique() > 1,
            diverged=bool((ranked["diverged"] > 0).any()),
        )

    others = [name for name in metrics if name not in accuracies and name != "diverged"]
    layers: dict[str, list[Figure]] = {}
    for what, layer in (name.split("/", 1) for name in others if "/" in name):
        layers.setdefault(_title(what), []).append(curves(f"{what}/{layer}", layer))
    return Standings(
        methods=best["method"].unique(maintain_order=True).to_list(),
        columns=[name for name in TUNED[1:] if best[name].n_unique() > 1],
        chosen_by=judge if several else None,
        last=last,
        window=window,
        headlines=[headline(metric) for metric in accuracies],
        inside=[curves(name) for name in others if "/" not in name],
        layers=layers,
    )


def so_far(rows: pl.DataFrame) -> pl.DataFrame:
    """As if each setting were to end with the last task that one of its members has behind; the others come later."""
    reached = pl.col("task").max() + 1
    return rows.with_columns(tasks=reached.over(settings(rows))).filter(
        reached.over("run", "member") == pl.col("tasks")
    )


def _best(rows: pl.DataFrame, metric: str, last: int, *names: str) -> pl.DataFrame:
    """The best setting for each value of these; among those that are furthest, because early tasks are easier."""
    ranked = ranking(rows, metric, last).sort("tasks", descending=True, maintain_order=True)
    return ranked.unique(names, keep="first", maintain_order=True)


def averaged(rows: pl.DataFrame, window: int) -> pl.DataFrame:
    """One row for so many tasks, in their middle."""
    if window == 1:
        return rows
    middle = pl.col("task") // window * window + window // 2
    keys = [name for name in rows.columns if name not in ("task", "value")]
    return rows.group_by(*keys, middle, maintain_order=True).agg(pl.col("value").mean()).select(rows.columns)


def _placed(ranked: pl.DataFrame) -> pl.DataFrame:
    """Where each interval begins, has its middle and ends, in percent of what all of them cover; null without one."""
    places = {"left": "low", "middle": "iqm", "right": "high"}
    finite = {place: pl.col(name).fill_nan(None) for place, name in places.items()}
    lowest, highest = finite["left"].min(), finite["right"].max()
    across = pl.when(highest > lowest).then(highest - lowest).otherwise(1.0)
    return ranked.with_columns(**{place: (100 * (end - lowest) / across).round(2) for place, end in finite.items()})


def _against(ranked: pl.DataFrame, rows: pl.DataFrame, metric: str, last: int) -> dict[str, Differences]:
    """Each of the ranking against the first, and against no mitigation."""
    none = ranked.filter(pl.col("method") == "none")[:1]
    references = {"the best": ranked[:1]} | ({} if none.is_empty() else {"none": none})
    if none.equals(ranked[:1]):
        del references["the best"]
    return {name: _differences(ranked, reference, rows, metric, last) for name, reference in references.items()}


def _differences(
    ranked: pl.DataFrame, reference: pl.DataFrame, rows: pl.DataFrame, metric: str, last: int
) -> Differences:
    """None for the reference itself, and for those that have got further than it or less far."""
    keys = settings(rows)
    theirs = rows.join(reference, on=keys, how="semi", nulls_equal=True)
    found = paired(rows, theirs, metric, last).filter(pl.col("tasks") == reference["tasks"][0])
    found = found.join(reference, on=keys, how="anti", nulls_equal=True)
    by_place = ranked.select(keys).with_row_index("place").join(found, on=keys, nulls_equal=True)
    rows_by_place = {row["place"]: row for row in by_place.to_dicts()}
    return [rows_by_place.get(place) for place in range(len(ranked))]


def _sensitivity(rows: pl.DataFrame, metric: str, last: int, drawings: Drawings) -> Figure | None:
    """The last tasks against the strength, each at its best step size, where a method ran at several strengths.

    Those on seeds for tuning count where there are any: of the other seeds only the best strength is trained then.
    """
    tuning = rows.filter(pl.col("seed") >= TUNING_SEEDS)
    rows = so_far(rows if tuning.is_empty() else tuning)
    rows = rows.filter((pl.col("metric") == metric) & (pl.col("task") >= pl.col("tasks") - last))
    strengths = rows.filter(pl.col("strength") > 0).group_by("method").agg(pl.col("strength").n_unique())
    if rows.is_empty() or strengths.filter(pl.col("strength") > 1).is_empty():
        return None
    best = _best(rows, metric, last, "method", "options", "strength")
    rows = rows.join(best, on=TUNED, how="semi", nulls_equal=True, maintain_order="left").drop("tasks", "step_size")
    return drawings.add(lines_over_strengths(rows, metric), "The same against the strength")


def _title(metric: str) -> str:
    """What it is, beginning with a capital letter."""
    title = TITLES.get(metric, metric.replace("_", " "))
    return title[:1].upper() + title[1:]
