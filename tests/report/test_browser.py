"""The page in a real browser: it complains of nothing, draws everything, and does what a click asks for."""

import dataclasses
from pathlib import Path

import pytest

from supple.lab.run import Run
from supple.report import write_page
from supple.runs.colours import COLOURS
from support import browser
from support.stores import plausible, store

pytestmark = pytest.mark.skipif(
    not (browser.CHROMIUM and browser.CHROMEDRIVER), reason="needs chromium and chromedriver (Debian: chromium-driver)"
)

METHODS = {"none": "no mitigation", "l2": "L2", "spectral": "spectral"}
"""Titles by name."""
METRICS = ("train_accuracy", "test_accuracy", "train_loss", "spectral_norm", "spectral_norm/0", "spectral_norm/2")
STRENGTHS = (1e-4, 1e-3)
SEEDS, TASKS = range(3), 4

LINES = "document.querySelectorAll('{} .chart svg .mark-line path')"
"""Of a part of the page; each is a curve."""


@pytest.fixture(scope="module")
def window():
    with browser.browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    runs = [
        Run.of("pixel-permutation-emnist", method, SEEDS, strength=strength, tasks=TASKS)
        for method in METHODS
        for strength in ([0.0] if method == "none" else STRENGTHS)
    ]
    other = [Run.of("random-label-digits", method, SEEDS, tasks=TASKS) for method in METHODS]
    store(root, runs, METRICS, plausible)
    store(root, other, METRICS[:1], plausible)
    return Path(write_page(str(root)))


@pytest.fixture(autouse=True)
def _no_complaints(window):
    window.console()
    yield
    assert window.console() == []


def curves(window, within="section"):
    """For each curve that is drawn there its opacity, by the order in which they stand."""
    return window.run(f"return [...{LINES.format(within)}].map(line => Number(line.getAttribute('opacity') ?? 1))")


def click(window, selector, **event):
    window.run(
        "document.querySelector(arguments[0]).dispatchEvent(new MouseEvent('click', {bubbles: true, ...arguments[1]}))",
        selector,
        event,
    )


def column(window, table, place):
    return window.run(
        "const [table, place] = arguments;"
        "return [...document.querySelector(table).tBodies[0].rows].map(row => row.cells[place].innerText)",
        table,
        place,
    )


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_chart_is_drawn_and_nothing_overflows(window, page, width, dark):
    window.open(page, width=width, dark=dark)
    charts = window.run("return document.querySelectorAll('section > :not(details) .chart').length")
    assert charts == 2 + 2 + 2 + 1  # accuracies over tasks and strengths, the inside, and the other problem's
    drawn = window.run(
        "return [...document.querySelectorAll('.chart svg')].map(svg => svg.getBoundingClientRect().width)"
    )
    assert len(drawn) == charts
    assert all(100 < each <= width for each in drawn)
    assert len(curves(window)) == charts * len(METHODS)
    assert window.run("return document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize(("dark", "colour"), [(False, COLOURS["none"]), (True, "#FFFFFF")], ids=["light", "dark"])
def test_no_mitigation_is_black_on_white_and_white_on_black(window, page, dark, colour):
    window.open(page, dark=dark)
    stroke = "[...document.querySelectorAll('.mark-line path')].map(line => getComputedStyle(line).stroke)"
    channels = ", ".join(str(int(colour[at : at + 2], 16)) for at in (1, 3, 5))
    assert f"rgb({channels})" in window.run(f"return {stroke}")


def test_a_click_in_the_legend_shows_one_method_alone(window, page):
    window.open(page)
    spectral, l2 = (f"#section-1 .legend [data-method={method}]" for method in ("spectral", "L2"))

    def shown(methods):
        """Wait until so many methods are shown in the six charts of the one problem, and all in the other's."""
        opacities = f"[...{LINES.format('#section-1')}].map(line => line.getAttribute('opacity') ?? 1)"
        window.wait(f"{opacities}.filter(opacity => opacity == 1).length == {6 * methods}")
        assert set(curves(window, "#section-2")) == {1.0}
        pressed = "document.querySelectorAll('#section-1 .legend [aria-pressed=true]')"
        return sorted(window.run(f"return [...{pressed}].map(button => button.dataset.method)"))

    click(window, spectral)
    assert shown(1) == ["spectral"]
    assert sorted(curves(window, "#section-1")[:3]) == [0.08, 0.08, 1.0]
    click(window, spectral)
    assert shown(3) == []
    click(window, spectral, shiftKey=True)
    assert shown(1) == ["spectral"]
    click(window, l2, shiftKey=True)
    assert shown(2) == ["L2", "spectral"]


def test_a_click_on_a_heading_sorts(window, page):
    window.open(page)
    table, head = "#section-1 .ranking", "#section-1 .ranking th:nth-child({}) button"
    assert sorted(column(window, table, 0)) == sorted(METHODS.values())
    means = [float(mean.split(" ± ")[0]) for mean in column(window, table, 2)]
    assert means == sorted(means, reverse=True)
    click(window, head.format(1))
    assert column(window, table, 0) == sorted(METHODS.values(), reverse=True)
    click(window, head.format(1))
    assert column(window, table, 0) == sorted(METHODS.values())
    for _ in range(2):  # what has no strength comes last either way
        click(window, head.format(2))
        assert column(window, table, 1)[-1] == "–"
    click(window, head.format(3))
    assert [float(mean.split(" ± ")[0]) for mean in column(window, table, 2)] == means
    heads = "document.querySelector(arguments[0]).querySelectorAll('th[aria-sort]')"
    (sorted_by,) = window.run(f"return [...{heads}].map(head => [head.innerText, head.ariaSort])", table)
    assert sorted_by == ["last 3", "descending"]  # of four tasks; the first counts in no mean


def told(window, x, y):
    """What the page tells about a place."""
    window.point_at(x - 50, y)
    window.point_at(x, y)
    window.wait("document.querySelector('#vg-tooltip-element.visible')")
    rows = "document.querySelectorAll('#vg-tooltip-element tr')"
    return dict(window.run(f"return [...{rows}].map(row => [...row.cells].map(cell => cell.innerText.trim()))"))


def test_pointing_at_a_curve_tells_its_numbers(window, page):
    window.open(page)
    window.run("document.querySelector('#section-1 .chart').scrollIntoView({block: 'center'})")
    x, y = window.run(
        "const box = document.querySelector('#section-1 .mark-symbol path').getBoundingClientRect();"
        "return [box.x + box.width / 2 + 3, box.y + box.height / 2]"  # a little beside it
    )
    found = told(window, x, y)
    assert found.keys() >= {"method", "task", "mean", "standard error", "seeds"}
    assert found["method"] in METHODS.values()
    assert found["task"] in "1234"
    assert float(found["mean"]) > 0
    assert found["seeds"] == "3"


@pytest.mark.parametrize("method", METHODS.values())
def test_only_what_is_shown_tells_its_numbers(window, page, method):
    window.open(page)
    click(window, f"#section-2 .legend [data-method='{method}']")
    window.run("document.querySelector('#section-2 .chart').scrollIntoView({block: 'center'})")
    discs = "document.querySelectorAll('#section-2 .layer_2_marks path')"
    window.wait(f"{discs}.length == {TASKS}")
    for box in window.run(f"return [...{discs}].map(disc => disc.getBoundingClientRect())"):
        assert told(window, box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)["method"] == method


def test_single_layers_are_drawn_when_they_are_opened(window, page):
    window.open(page)
    fold = "#section-1-layers-1"
    assert curves(window, fold) == []
    click(window, f"{fold} summary")
    window.wait(f"{LINES.format(fold)}.length == {2 * len(METHODS)}")


def test_on_paper_it_is_light_and_complete(window, page):
    window.open(page, dark=True)
    window.command("Emulation.setEmulatedMedia", media="print", features=[])
    assert window.run("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert window.run("return getComputedStyle(document.querySelector('.chart')).color") == "rgb(27, 31, 36)"
    assert window.command("Page.printToPDF")["data"]


def test_a_watched_page_loads_itself_and_is_left_as_the_reader_had_it(window, page, tmp_path):
    watched = Path(write_page(str(page.parent), str(tmp_path / "watched.html"), every=1))
    window.open(watched)
    click(window, "#section-1 .legend [data-method=L2]")
    click(window, "#section-1-runs summary")
    window.run("window.before = true")
    window.wait("!window.before && 'ready' in document.body.dataset")
    assert window.run("return document.querySelector('#section-1-runs').open")
    assert sorted(curves(window, "#section-1")[:3]) == [0.08, 0.08, 1.0]


def test_a_page_at_rest_stays(window, page):
    window.open(page)
    window.run("window.before = true; const wait = new Promise(done => setTimeout(done, 1500)); return wait")
    assert window.run("return window.before")


@pytest.mark.parametrize("done", [None, 0], ids=["nothing", "only begun"])
def test_a_folder_without_results(window, tmp_path, done):
    if done is not None:
        store(tmp_path, [Run.of("random-label-digits", "l2", SEEDS)], METRICS[:1], plausible, done=done)
    window.open(Path(write_page(str(tmp_path))))
    text = window.run("return document.body.innerText")
    assert ("Nothing has been measured yet" if done == 0 else "There are no runs here yet") in text


def test_names_are_text_and_never_markup(window, tmp_path):
    (run,) = [Run.of("random-label-digits", "l2", SEEDS, tasks=1)]
    name = "</script><b onclick='window.harm = 1'>l2"
    store(tmp_path, [dataclasses.replace(run, method=name, model=name.replace("/", ""))], METRICS[:1], plausible)
    window.open(Path(write_page(str(tmp_path))))
    assert name in window.run("return document.querySelector('.legend').innerText")
    assert len(curves(window)) == 1
