"""Figure 5: returns of soft actor-critic over seven tasks, their sensitivity, and the inside of the critics."""

import altair as alt

from supple.figures.control import PERIODS, ControlFigure, RowsOf, agents, compared
from supple.lab.problems import Scale
from supple.rl.charts import INSIDE, aggregate, over_steps, sensitivity, with_periods
from supple.rl.run import Run
from supple.runs import metrics

SMALL_BUFFER: dict[Scale, int] = {"paper": 250_000, "quick": 500}
STRENGTHS: dict[Scale, tuple[float, ...]] = {"paper": (1e-5, 1e-4, 1e-3, 1e-2), "quick": (1e-4, 1e-3)}


def parts(scale: Scale, seeds: int) -> dict[str, list[Run]]:
    """The runs of each part of the figure."""
    large = compared(scale, seeds, inside=True)
    others = [strength for strength in STRENGTHS[scale] if strength != 1e-4]
    return {
        "large": large,
        "small": compared(scale, seeds, capacity=SMALL_BUFFER[scale]),
        "strengths": [run for run in large if run.method == "spectral"]
        + [run for strength in others for run in agents("spectral", scale, seeds, strength=strength)],
        "periods": [run for run in large if run.method == "resets"]
        + [run for period in PERIODS[scale][1:] for run in agents("resets", scale, seeds, period=period)],
    }


def runs(scale: Scale, seeds: int) -> list[Run]:
    return list(dict.fromkeys(run for part in parts(scale, seeds).values() for run in part))


def charts(rows_of: RowsOf, scale: Scale, seeds: int) -> list[list[alt.LayerChart]]:
    rows = {name: rows_of(part) for name, part in parts(scale, seeds).items()}
    strengths = sensitivity(rows["strengths"], "strength", "strength of spectral regularization")
    periods = sensitivity(with_periods(rows["periods"]), "reset_every", "updates from one reset to the next")
    inside = [over_steps(rows["large"].drop("problem"), metric, metrics.find(metric).title) for metric in INSIDE]
    return [
        [aggregate(rows["large"], "large buffer"), strengths],
        [aggregate(rows["small"], f"buffer of {SMALL_BUFFER[scale]:,}"), periods],
        inside[:2],
        inside[2:],
    ]


FIGURE = ControlFigure(
    title="Figure 5: soft actor-critic on several tasks",
    claim="Spectral regularization is competitive with resets when the buffer is unbounded, better when it is small, "
    "and less sensitive to its strength than resets are to their period; it reduces overestimation.",
    runs=runs,
    charts=charts,
    note="returns: interquartile mean with its 95 % bootstrap interval; else mean and standard error. Tasks, strengths "
    "and periods are not in the paper's text",
)
