"""Charts: three files that open anywhere, and curves that show the numbers they were given."""

import itertools
import re
import struct
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import fsspec
import polars as pl
import pytest

from supple.rl.methods import METHODS as AGENT_METHODS
from supple.runs.charts import coloured_methods, curves_of, over_seeds, save, sensitivity_of
from supple.runs.colours import COLOURS, GREY, colour_scale
from supple.runs.lines import LABEL_HEIGHT
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
    chart = curves_of(frame(["none", "spectral"]), "train_accuracy", "What it shows", "and how")
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
    paths = save(curves_of(frame(["none"]), "train_accuracy", "title"), "memory://charts/deeper")
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
    assert '<meta name="viewport" content="width=device-width' in page
    assert '"width": "container"' in page
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
    own = [colour.lower() for name, colour in COLOURS.items() if name != "resets"]
    assert len(set(own)) == len(own)
    assert all(re.fullmatch("#[0-9A-F]{6}", colour) for colour in COLOURS.values())


def test_every_method_has_a_title_of_its_own():
    assert len({method.title for method in METHODS.values()} - {""}) == len(METHODS)


def spec_of(rows, metric="train_accuracy"):
    spec = curves_of(rows, metric, "title").to_dict()
    return spec, spec["datasets"][spec["data"]["name"]]


def test_curves_show_means_and_errors_from_task_one():
    _, data = spec_of(frame(["none"]))
    found = [(row["task"], row["mean"], row["low"], row["high"]) for row in data]
    assert found == [(task, task - 0.5, task - 1, task) for task in (1, 2, 3)]  # two seeds, 1 apart: 0.5 either way


def test_a_title_is_no_wider_than_a_phone():
    long = "Random labels, digits (quick scale, shortened to 2 of 30 tasks)"
    lines = curves_of(frame(["none"]), "train_accuracy", long).to_dict()["title"]["text"]
    assert " ".join(lines) == long
    assert max(map(len, lines)) <= 40


def test_the_axis_names_whole_tasks_only():
    x = curves_of(frame(["none"]), "train_accuracy", "").to_dict()["layer"][0]["encoding"]["x"]
    assert x["axis"]["labelExpr"] == "datum.value % 1 ? '' : datum.label"


def test_one_seed_has_a_line_without_a_band():
    _, data = spec_of(frame(["none"], seeds=1))
    assert all(row["low"] == row["mean"] == row["high"] for row in data)


def test_a_click_selects_a_line():
    spec, _ = spec_of(frame(["none", "l2"]))
    (picked,) = spec["params"]
    assert (picked["select"]["on"], picked["select"]["fields"]) == ("click", ["method"])
    for layer in spec["layer"][:2]:
        assert picked["name"] in str(layer["encoding"]["opacity"]["condition"])
    small = curves_of(frame(["none", "l2"]), "train_accuracy", "", width=200).to_dict()
    assert small["params"][0]["bind"] == "legend"


def labels_of(spec):
    (layer,) = [layer for layer in spec["layer"] if layer["mark"]["type"] == "text"]
    return {row["label"]: row["place"] for row in spec["datasets"][layer["data"]["name"]]}


def test_names_at_the_ends_do_not_overlap():
    values = {"none": 0.0, "l2": 0.90, "l2-init": 0.901, "spectral": 0.902}
    rows = pl.concat(frame([method]).with_columns(value=pl.lit(value)) for method, value in values.items())
    spec, _ = spec_of(rows)
    places = labels_of(spec)
    assert list(places) == ["no mitigation", "L2", "L2 init", "spectral"]
    gaps = [high - low for low, high in itertools.pairwise(places.values())]
    assert min(gaps) >= 0.999 * 0.902 * LABEL_HEIGHT / 320
    assert 0 <= min(places.values()) <= max(places.values()) <= 0.902
    assert spec["layer"][0]["encoding"]["color"]["legend"] is None


def test_lines_that_cannot_be_told_apart_are_grey():
    """The baseline and the best have a colour, also where another metric is drawn; the legend names the others."""
    methods = [*METHODS][:10]
    rows = pl.concat(
        frame([method]).with_columns(value=pl.lit(float(place)), tasks=pl.lit(3))
        for place, method in enumerate(methods)
    )
    worse = rows.with_columns(metric=pl.lit("train_loss"), value=-pl.col("value"))
    for metric in ("train_accuracy", "train_loss"):
        spec, _ = spec_of(pl.concat([rows, worse]), metric)
        scale = spec["layer"][0]["encoding"]["color"]["scale"]
        grey = [METHODS[method].title for method in methods[1:4]]
        assert [title for title, colour in zip(scale["domain"], scale["range"], strict=True) if colour == GREY] == grey
        assert spec["layer"][0]["encoding"]["color"]["legend"]["values"] == grey
        assert labels_of(spec).keys() == set(scale["domain"]) - set(grey)


@pytest.mark.parametrize(
    ("values", "zero"), [((0.1, 0.9), True), ((0.92, 0.98), False), ((-900.0, -200.0), False), ((0.0, 0.0), True)]
)
def test_the_axis_begins_where_the_data_are(values, zero):
    rows = pl.concat(
        frame([method]).with_columns(value=pl.lit(value)) for method, value in zip(METHODS, values, strict=False)
    )
    for layer in spec_of(rows)[0]["layer"][:2]:
        assert layer["encoding"]["y"]["scale"]["zero"] is zero
        assert layer["encoding"]["x"]["scale"] == {"nice": False, "padding": 8, "zero": False}
        assert layer["encoding"]["x"]["axis"]["tickMinStep"] == 1
        assert not layer["mark"].get("clip")


def test_one_seed_has_no_standard_error():
    assert over_seeds(1) == "one seed"
    assert over_seeds(3) == "mean and standard error over 3 seeds"


def test_a_legend_sorts_numbers_by_size_and_speaks_in_words():
    options = ["{}", '{"exponent": 16}', '{"exponent": 4}']
    rows = pl.concat(frame(["spectral"]).with_columns(options=pl.lit(value)) for value in options)
    chart = curves_of(rows, "train_accuracy", "", series="options").to_dict()
    assert chart["layer"][0]["encoding"]["color"]["scale"]["domain"] == ["default", "exponent: 4", "exponent: 16"]
    sizes = pl.concat(frame(["spectral"]).with_columns(step_size=pl.lit(value)) for value in (1e-3, 5e-4, 5e-3))
    colour = curves_of(sizes, "train_accuracy", "", series="step_size").to_dict()["layer"][0]["encoding"]["color"]
    assert (colour["scale"]["domain"], colour["legend"]["title"]) == ([5e-4, 1e-3, 5e-3], "step size")


def test_a_strength_that_follows_from_the_method_is_not_in_the_legend():
    rows = pl.concat(
        frame([method]).with_columns(strength=pl.lit(strength), step_size=pl.lit(step_size))
        for method, strength in (("none", 0.0), ("l2", 0.1))
        for step_size in (1e-3, 1e-2)
    )
    chart = curves_of(rows, "train_accuracy", "", series="step_size").to_dict()
    dash = chart["layer"][1]["encoding"]["strokeDash"]["condition"]
    assert (dash["title"], dash["scale"]["domain"]) == ("method", ["L2", "no mitigation"])


def test_dashes_tell_apart_only_the_lines_of_one_colour():
    several = {"spectral": (0.1, 1.0, 1e-4), "l2": (1e-3,), "none": (0.0,)}
    rows = pl.concat(
        frame([method]).with_columns(strength=pl.lit(strength))
        for method, strengths in several.items()
        for strength in strengths
    )
    spec, data = spec_of(rows)
    dash = spec["layer"][1]["encoding"]["strokeDash"]
    assert dash["condition"]["scale"]["domain"] == ["0.0001", "0.1", "1"], "by size"
    assert dash["value"] == [1, 0], "solid"
    assert {(row["method"], row["setting"]) for row in data if row["method"] != "spectral"} == {
        ("L2", None),
        ("no mitigation", None),
    }


def test_a_method_has_the_same_colour_in_any_company():
    for methods in (["spectral"], ["l2", "spectral", "none"]):
        scale = spec_of(frame(methods))[0]["layer"][0]["encoding"]["color"]["scale"]
        in_order = [method for method in METHODS if method in methods]
        assert scale["domain"] == [METHODS[method].title for method in in_order]
        assert scale["range"] == [COLOURS[method] for method in in_order]


def test_every_method_has_a_colour_also_those_of_agents():
    assert COLOURS.keys() == {*METHODS, *AGENT_METHODS}
    scale = colour_scale(["none", "resets"])
    assert scale.range == [METHODS["none"].colour, METHODS["network-reset"].colour]


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
    dash = spec["layer"][1]["encoding"]["strokeDash"]["condition"]
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


def many_methods(value_of, tasks=8):
    """Ten methods; ``value_of(place, task)`` is what each of two seeds measures."""
    return pl.DataFrame(
        [
            (method, 1.0, seed, task, "train_accuracy", float(value_of(place, task)), tasks)
            for place, method in enumerate([*METHODS][:10])
            for seed in range(2)
            for task in range(tasks)
        ],
        schema=["method", "strength", "seed", "task", "metric", "value", "tasks"],
        orient="row",
    )


def test_the_best_methods_are_those_of_the_last_five_tasks():
    """What was far ahead in the first tasks only is grey."""
    rows = many_methods(lambda place, task: 1000 if place in (1, 2, 3) and task < 3 else place)
    assert coloured_methods(rows) == ["none", *reversed([*METHODS][4:10])]


def test_a_method_that_ends_without_a_number_is_not_among_the_best():
    rows = many_methods(lambda place, task: float("nan") if place == 9 else place)
    assert coloured_methods(rows) == ["none", *reversed([*METHODS][3:9])]


def test_where_less_is_better_the_lowest_are_the_best():
    rows = many_methods(lambda place, task: place).with_columns(metric=pl.lit("train_loss"))
    assert coloured_methods(rows) == [*METHODS][:7]


def test_the_name_of_a_line_that_breaks_off_is_at_its_last_number():
    diverged = pl.when(pl.col("task") == 2).then(float("nan")).otherwise(pl.col("value"))
    rows = pl.concat([frame(["none"]), frame(["l2"]).with_columns(value=diverged)])
    spec, _ = spec_of(rows)
    assert labels_of(spec) == {"L2": 1.5, "no mitigation": 2.5}
