"""The picture of the README and of the documentation's first page, for light and dark pages, from results/demo.

python benchmarks/front_picture.py
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import altair as alt
import polars as pl
import tyro
import vl_convert

from supple.runs.charts import configured, curves_of
from supple.runs.colours import colour_scale, on_dark, on_light
from supple.training.methods import METHODS

GITHUB_DARK = "#0d1117"
"""The background of a dark page of GitHub."""
ROOT = Path(__file__).parents[1]
TITLE = "A network learns thirty tasks"
SUBTITLE = [
    "One after the other; in each it memorizes new random labels of 1,797 digits. Mean of three seeds, shaded by the "
    "standard error.",
    "Spectral at strength 0.001 (0.003, best of a finer grid, has 0.70 in the last five tasks), decoupled at 1",
]


@dataclass(frozen=True)
class FrontPicture:
    """Draw the README's picture for light and dark pages."""

    def __call__(self) -> None:
        rows = pl.read_parquet(ROOT / "results/demo/rows.parquet")
        rows = pl.concat([rows.filter(method=name) for name in METHODS if name in rows["method"]])
        chart = configured(curves_of(rows, "train_accuracy", TITLE, SUBTITLE))
        save_light_and_dark(chart, ROOT / "docs/front.png", colour_scale(rows["method"].unique().to_list()).range)


def save_light_and_dark(chart: alt.LayerChart, path: Path, colours: Iterable[str]) -> None:
    """Save a chart as PNG for light pages; beside it, as ``NAME-dark.png``, for dark ones, in lighter colours."""
    light = chart.to_json()
    dark = (
        chart.configure(background=GITHUB_DARK).configure_axis(gridColor="#444444", titleFontWeight="normal").to_json()
    )
    for colour in colours:
        dark = dark.replace(colour, on_dark(colour)).replace(on_light(colour), on_dark(colour))
    for place, specification, theme in ((path, light, None), (path.with_stem(f"{path.stem}-dark"), dark, "dark")):
        place.write_bytes(vl_convert.vegalite_to_png(specification, scale=2, theme=theme))


if __name__ == "__main__":
    tyro.cli(FrontPicture, description=__doc__)()
