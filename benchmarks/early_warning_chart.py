"""The chart of early_warning.py: partial rank correlations."""

from collections.abc import Sequence

import altair as alt
import polars as pl

from supple.runs import charts

SURE, UNSURE = "its 95 % interval excludes 0", "the interval contains 0"


def chart(rows: pl.DataFrame, names: Sequence[str]) -> alt.FacetChart:
    """Partial rank correlations with the next task's accuracy, over all runs and within a run: a point a problem."""
    rows = rows.filter(~pl.col("problem").str.contains("readiness"))  # few runs, and candidates that no other has
    shown = [name for name in names if name in rows["candidate"]]
    rows = rows.filter((pl.col("target") == "next") & (pl.col("kind") == "partial") & pl.col("candidate").is_in(shown))
    rows = rows.with_columns(
        over=pl.when("within").then(pl.lit("within a run")).otherwise(pl.lit("over all runs")),
        candidate=pl.col("candidate").str.replace_all("_", " "),
        sure=pl.when(pl.col("low") * pl.col("high") > 0).then(pl.lit(SURE)).otherwise(pl.lit(UNSURE)),
    )
    legend = alt.Legend(title="One point for each problem", orient="bottom", titleLimit=0, labelLimit=0)
    points = (
        alt.Chart(rows)
        .mark_point(size=45, opacity=1, strokeWidth=1.5, color="#0072b2")
        .encode(
            x=alt.X("value:Q", title="partial rank correlation").scale(domain=[-1, 1]).axis(tickCount=5),
            y=alt.Y("candidate:N", sort=[name.replace("_", " ") for name in shown], title=None).axis(grid=True),
            fill=alt.Fill("sure:N", legend=legend).scale(domain=[SURE, UNSURE], range=["#0072b2", "#ffffff"]),
        )
    )
    zero = alt.Chart(rows).mark_rule(color="#555555").encode(x=alt.datum(0.0))
    faceted: alt.FacetChart = (
        (zero + points)
        .properties(width=260, height=alt.Step(22))
        .facet(alt.Facet("over:N", title=None), columns=2)
        .properties(title=alt.Title("What each diagnostic tells about the next task's accuracy", anchor="start"))
    )
    return charts.configured(faceted)
