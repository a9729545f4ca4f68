"""Draw the pictures of the pages again, from the committed rows alone.

    python benchmarks/pictures.py

The strip of an episode and the charts of a run that was not committed are not among them. Those of the README's first
screen, the stream and norm control have more than one file, or need tuning's rows: `front_picture.py`, and `tables` of
`stream.py`, `norm_control.py` and `control_forms.py`, draw them.
"""

from dataclasses import dataclass
from pathlib import Path

import changing_world
import digits
import early_warning
import paper
import polars as pl
import rotations
import tyro

from supple.lab.problems import title_of
from supple.rl.charts import over_steps
from supple.runs import charts
from supple.runs.tables import title_with_scale

ROWS, DOCS = Path("results"), Path("docs")


@dataclass(frozen=True)
class Pictures:
    """Draw the pictures of the pages again, from the committed rows alone."""

    def __call__(self) -> None:
        for name in paper.TITLES:
            if (file := ROWS / f"paper/{name}.parquet").exists():
                paper.draw(name, pl.read_parquet(file), DOCS / "paper")
        demo, primed = (pl.read_parquet(ROWS / name) for name in ("demo/rows.parquet", "control/priming.parquet"))
        accuracy = charts.curves_of(
            demo,
            "train_accuracy",
            title_with_scale(demo, title_of(demo["problem"][0])),
            charts.over_seeds(demo["seed"].n_unique()),
        )
        charts.configured(accuracy).save(DOCS / "demo.png", scale_factor=2)
        primed = primed.filter(pl.col("prime") > 0)
        subtitle = f"evaluation return, {charts.over_seeds(primed['seed'].n_unique())}"
        returns = over_steps(primed, "return", "cartpole-swingup, primed with 20,000 updates", subtitle)
        charts.configured(returns).save(DOCS / "priming.png", scale_factor=2)
        if (file := ROWS / "changing-world/rows.parquet").exists():
            changing = pl.read_parquet(file)
            changing_world.draw(changing, changing["problem"][0]).save(DOCS / changing_world.PICTURE, scale_factor=2)
        rotations.chart(pl.read_parquet(ROWS / "rotations/rows.parquet")).save(DOCS / "rotations.png", scale_factor=2)
        correlations = pl.read_parquet(ROWS / "early-warning/correlations.parquet")
        early_warning.chart(correlations, (*early_warning.DIAGNOSTICS, "tasks")).save(
            DOCS / "early-warning.png", scale_factor=2
        )
        digits.chart(pl.read_parquet(ROWS / "digits/rows.parquet")).save(ROWS / "digits/chart.png", scale_factor=2)


if __name__ == "__main__":
    tyro.cli(Pictures, description=__doc__)()
