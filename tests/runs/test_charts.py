"""Charts: three files that open anywhere, and curves that show the numbers they were given."""

import re
import struct
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import fsspec
import polars as pl
import pytest

from supple.runs.charts import COLOURS, curves_of, learning_curves, save, sensitivity_of
from supple.runs.metrics import find
from supple.training.methods import METHODS


def frame(methods, seeds=2):
    """Seed s at task t measures s + t."""
    rows = [
        (method, 1.0, seed, task, "train_accuracy", float(seed + task))
        for method in methods
        for seed in range(seeds)
        for task in range(3)
    ]
    return pl.DataFrame(rows, schema=["method", "strength", "seed", "task", "metric", "value"], orient="row")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    chart = learning_curves(frame(["none", "spectral"]), "train_accuracy", "What it shows", "and how")
    paths = save(chart, tmp_path_factory.mktemp("charts") / "deeper", "curve")
    paths = [Path(path) for path in paths]
    assert {path.name for path in paths} == {"curve.svg", "curve.png", "curve.html", "curve.pdf"}
    return {path.suffix[1:]: path for path in paths}


def test_a_strength_has_one_point_and_what_has_none_goes_across():
    tried = {"l2": [0.0, 0.1, 0.2], "none": [0.0], "spectral": [0.2]}
    rows = pl.concat(
        frame([method]).with_columns(strength=pl.lit(strength), value=pl.col("value") + strength)
        for method, strengths in tried.items()
        for strength in strengths
    )
    points = sensitivity_of(rows, "train_accuracy", "").data.select("method", "strength", "mean").sort("method")
    none = [("no mitigation", 0.1, 1.5), ("no mitigation", 0.2, 1.5)]
    expected = [("L2", 0.1, 1.6), ("L2", 0.2, 1.7), *none, ("spectral", 0.2, 1.7)]
    assert points.with_columns(pl.col("mean").round(9)).rows() == expected


def test_options_that_were_left_alone_have_a_name():
    asked = ["{}", '{"exponent": 4, "seed": 1}']
    rows = pl.concat(frame(["spectral"]).with_columns(options=pl.lit(options)) for options in asked)
    drawn = curves_of(rows, "train_accuracy", "", series="options").data
    assert set(drawn["options"]) == {"default", "exponent: 4, seed: 1"}


def test_charts_go_wherever_files_go(files):
    paths = save(learning_curves(frame(["none"]), "train_accuracy", "title"), "memory://charts/deeper")
    assert [fsspec.open(path).open().read(4) for path in paths if path.endswith("png")] == [b"\x89PNG"]
    assert files["pdf"].read_bytes().startswith(b"%PDF")


def test_png(files):
    content = files["png"].read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    assert 2 * 560 < width < 3 * 560  # the plot twice as fine, with axes and legend
    assert 2 * 320 < height < 3 * 320


def test_svg(files):
    root = ElementTree.parse(files["svg"]).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    text = " ".join(root.itertext())
    for part in ("What it shows", "and how", "no mitigation", "spectral", "task", find("train_accuracy").axis):
        assert part in text
    assert COLOURS["none"] in files["svg"].read_text()


def test_html_needs_no_network(files):
    page = files["html"].read_text()
    addresses = Addresses()
    addresses.feed(page)
    assert addresses.tags > {"html", "script", "style"}
    assert addresses.found == []
    assert not re.search(r"""\bimport\s*(\(|[\w{}*,\s]+from)?\s*['"]https?:""", page)
    assert "vegaEmbed" in page
    assert len(page) > 400_000  # the scripts are inside
    assert "What it shows" in page


class Addresses(HTMLParser):
    """Everything that a page would fetch."""

    def __init__(self):
        super().__init__()
        self.tags, self.found = set(), []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.found += [value for name, value in attributes if name in ("src", "href")]


def test_every_method_has_a_colour_of_its_own():
    assert COLOURS.keys() >= METHODS.keys()
    assert len({colour.lower() for colour in COLOURS.values()}) == len(COLOURS)
    assert all(re.fullmatch("#[0-9A-F]{6}", colour) for colour in COLOURS.values())


def test_every_method_has_a_title_of_its_own():
    assert len({method.title for method in METHODS.values()} - {""}) == len(METHODS)


def spec_of(rows, metric="train_accuracy"):
    spec = learning_curves(rows, metric, "title").to_dict()
    (data,) = spec["datasets"].values()
    return spec, data


def test_curves_show_means_and_errors_from_task_one():
    _, data = spec_of(frame(["none"]))
    found = [(row["task"], row["mean"], row["low"], row["high"]) for row in data]
    assert found == [(task, task - 0.5, task - 1, task) for task in (1, 2, 3)]  # two seeds, 1 apart: 0.5 either way


def test_one_seed_has_a_line_without_a_band():
    _, data = spec_of(frame(["none"], seeds=1))
    assert all(row["low"] == row["mean"] == row["high"] for row in data)


def test_the_legend_selects():
    spec, _ = spec_of(frame(["none", "l2"]))
    (picked,) = spec["params"]
    assert (picked["bind"], picked["select"]["fields"]) == ("legend", ["method"])
    for layer in spec["layer"]:
        assert picked["name"] in str(layer["encoding"]["opacity"]["condition"])


def test_a_method_has_the_same_colour_in_any_company():
    for methods in (["spectral"], ["l2", "spectral", "none"]):
        scale = spec_of(frame(methods))[0]["layer"][0]["encoding"]["color"]["scale"]
        assert scale["domain"] == [METHODS[method].title for method in methods]
        assert scale["range"] == [COLOURS[method] for method in methods]


def test_every_setting_has_a_line_of_its_own():
    rows = pl.concat(
        [
            frame(["l2"]).with_columns(strength=pl.lit(strength), step_size=pl.lit(step_size), model=pl.lit("mlp"))
            for strength in (0.1, 0.2)
            for step_size in (1e-3, 1e-2)
        ]
    )
    spec, data = spec_of(rows)
    assert len(data) == 3 * 4
    for layer in spec["layer"]:
        assert {entry["field"] for entry in layer["encoding"]["detail"]} == {"strength", "step_size"}
    dash = spec["layer"][1]["encoding"]["strokeDash"]
    assert (dash["field"], dash["title"]) == ("setting", "strength · step size")
    assert {row["setting"] for row in data} == {"0.1 · 0.001", "0.1 · 0.01", "0.2 · 0.001", "0.2 · 0.01"}
    tooltip = {entry["field"] for entry in spec["layer"][1]["encoding"]["tooltip"]}
    assert {"method", "strength", "step_size", "mean", "error", "seeds"} <= tooltip


def test_each_methods_own_strength_is_no_setting():
    rows = pl.concat(
        [frame([m]).with_columns(strength=pl.lit(s)) for m, s in (("none", 0.0), ("l2", 0.1), ("l2-init", 0.2))]
    )
    spec, data = spec_of(rows)
    assert "strokeDash" not in spec["layer"][1]["encoding"]
    assert "setting" not in data[0]
