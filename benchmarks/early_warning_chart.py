"""The chart of early_warning.py: partial rank correlations."""

from collections.abc import Sequence

import altair as alt
import polars as pl

from supple.runs import charts


def chart(rows: pl.DataFrame, names: Sequence[str]) -> alt.FacetChart:
    """Partial rank correlations with the next task's accuracy, over all runs and within a run."""
    rows = rows.filter(~pl.col("problem").str.contains("readiness"))  # few runs, and candidates that no other has
    shown = [name for name in names if name in rows["candidate"]]
    rows = rows.filter((pl.col("target") == "next") & (pl.col("kind") == "partial") & pl.col("candidate").is_in(shown))
    rows = rows.with_columns(
        over=pl.when("within").then(pl.lit("within a run")).otherwise(pl.lit("over all runs")),
        candidate=pl.col("candidate").str.replace_all("_", " "),
    )
    problems = rows["problem"].unique(maintain_order=True).to_list()
    y = alt.Y("candidate:N", sort=[name.replace("_", " ") for name in shown], title=None)
    base = alt.Chart(rows).encode(y=y, color=alt.Color("over:N", title=None), yOffset="over:N")
    x = alt.X("value:Q", title="partial rank correlation").scale(domain=[-1, 1])
    parts = (
        alt.Chart(rows).mark_rule(color="#999999").encode(x=alt.datum(0.0))
        + base.mark_rule().encode(x=alt.X("low:Q").scale(domain=[-1, 1]), x2="high:Q")
        + base.mark_point(filled=True, size=30).encode(x=x)
    )
    faceted: alt.FacetChart = (
        parts.properties(width=120, height=alt.Step(10))
        .facet(alt.Facet("problem:N", sort=problems, title=None), columns=4)
        .properties(title=alt.Title("The next task's accuracy, given today's accuracy", anchor="start"))
    )
    return charts.configured(faceted)
