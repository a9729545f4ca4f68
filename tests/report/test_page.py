"""The page as text: whole without a network, useful whatever the folder holds, quick and small for many rows."""

import itertools
import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import fsspec
import polars as pl
import pytest

import supple.report
from supple import cli
from supple.lab.run import Run
from supple.report import page, watch, write_page
from supple.report.overview import under_way
from supple.rl import run as control
from support.stores import plausible, store

METRICS = ("train_accuracy", "train_loss", "diverged")
DIGITS = "random-label-digits"


class Page(HTMLParser):
    """Its visible text, what its links lead to, and what it would fetch."""

    def __init__(self, text):
        super().__init__()
        self.links, self.fetched, self._silent, self._words = [], [], False, []
        self.feed(text)
        self.text = " ".join(" ".join(self._words).split())

    def handle_starttag(self, tag, attributes):
        self._silent = tag in ("script", "style")
        for name, value in attributes:
            if name == "href" and tag == "a":
                self.links.append(value)
            elif name in ("src", "href"):
                self.fetched.append(value)

    def handle_endtag(self, tag):
        self._silent = False

    def handle_data(self, data):
        if not self._silent:
            self._words.append(data)


def runs_of(*methods, **changes):
    return [Run.of(DIGITS, method, range(2), tasks=3, **changes) for method in methods]


def test_an_empty_folder_says_what_to_do(tmp_path):
    found = Page(Path(write_page(str(tmp_path))).read_text())
    assert "There are no runs here yet" in found.text
    assert "supple sweep" in found.text


@pytest.mark.parametrize("name", ["not/there", "a file"])
def test_there_is_no_page_about_no_folder(name, tmp_path):
    (tmp_path / "a file").touch()
    for out in (None, str(tmp_path / "pages" / "page.html")):
        with pytest.raises(FileNotFoundError, match=f"expected a folder of runs, found none at {tmp_path}/{name}"):
            write_page(str(tmp_path / name), out)
    assert [path.name for path in tmp_path.iterdir()] == ["a file"]


def test_a_page_needs_a_name(tmp_path):
    store(tmp_path, runs_of("none"), METRICS, plausible)
    for names in [(str(tmp_path), ""), ("", None)]:
        with pytest.raises(ValueError, match="expected a folder or an address, got an empty name"):
            write_page(*names)


def test_runs_that_have_only_begun(tmp_path):
    store(tmp_path, runs_of("l2"), METRICS, plausible, done=0)
    found = Page(page(str(tmp_path)))
    assert "0 of 2 networks trained to the end" in found.text
    assert "Nothing has been measured yet" in found.text
    assert f"supple run {DIGITS} --method l2 --tasks 3 --seeds 2" in found.text


def test_half_finished_runs_beside_finished_ones(tmp_path):
    store(tmp_path, runs_of("none"), METRICS, plausible)
    store(tmp_path, runs_of("l2"), METRICS, plausible, done=1)
    found = Page(page(str(tmp_path)))
    assert "2 of 4 networks trained to the end" in found.text
    assert "Random labels, digits L2 0 of 2 2 of 6" in found.text  # networks and tasks under way
    assert "so far" in found.text


def test_only_what_is_not_finished_is_under_way():
    columns = {"problem": ["p", "p", "q"], "method": ["a"] * 3, "done": [3, 1, 3], "tasks": [3] * 3}
    found = under_way(pl.DataFrame(columns))
    assert found == [{"problem": "p", "method": "a", "members": 2, "finished": 1, "done": 4, "tasks": 6}]


def test_damaged_runs_are_named(tmp_path):
    store(tmp_path, runs_of("none"), METRICS, plausible)
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "run.json").write_text("{")
    found = Page(page(str(tmp_path)))
    assert "torn is left out: its run.json can't be read (Expecting property name" in found.text
    assert "2 networks trained to the end" in found.text


def test_it_fetches_nothing_and_draws_with_one_copy_of_the_scripts(tmp_path):
    store(tmp_path, runs_of("none", "l2"), METRICS, plausible)
    text = page(str(tmp_path))
    assert Page(text).fetched == []
    assert not re.search(r"""\bimport\s*(\(|[\w{}*,\s]+from)?\s*['"]https?:""", text)
    assert text.count("window.vegaEmbed=") == 1
    assert len(text) < 1_200_000


def test_legend_and_charts_call_methods_by_their_titles(tmp_path):
    """A click in the legend picks the curves of that title."""
    store(tmp_path, runs_of("none", "l2"), METRICS, plausible)
    text = page(str(tmp_path))
    titles = {"no mitigation", "L2"}
    assert set(re.findall(r'data-method="([^"]*)"', text)) == titles
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert all(set(chart["columns"]["method"]["words"]) == titles for chart in data["charts"])
    assert {*data["specs"][0]["layer"][0]["encoding"]["color"]["scale"]["domain"]} == titles
    assert "against no mitigation" in Page(text).text


def test_each_protocol_has_a_section_of_its_own(tmp_path):
    runs = [*runs_of("none"), *runs_of("none", batch_size=64), *runs_of("l2", step_size=0.5)]
    store(tmp_path, runs, METRICS, plausible)
    text = page(str(tmp_path))
    assert re.findall(r"<h2>(Random.*)</h2>", text) == [
        "Random labels, digits (quick scale, shortened to 3 of 30 tasks), batch size 256",
        "Random labels, digits (quick scale, shortened to 3 of 30 tasks, batch size 64)",
    ]
    assert text.count(f"<dt>problem</dt><dd>{DIGITS}</dd>") == 2, "the name to type"


def test_a_sections_title_says_nothing_twice(tmp_path):
    store(tmp_path, [*runs_of("none"), *runs_of("none", examples=512)], METRICS, plausible)
    assert re.findall(r"<h2>(Random.*)</h2>", page(str(tmp_path))) == [
        "Random labels, digits (quick scale, shortened to 3 of 30 tasks, 512 examples)",
        "Random labels, digits (quick scale, shortened to 3 of 30 tasks), examples all",
    ]


def test_plasticity_tests_are_listed(tmp_path):
    run, other = runs_of("none", "l2")
    store(tmp_path, [run, other], METRICS, plausible)
    assert "Is plasticity lost?" not in page(str(tmp_path))
    folder = Path(run.folder(str(tmp_path)).path)
    for name, result in {
        "after-2-member-1": {"member": 1, "after": 2, "sentence": "nothing is <b>lost"},
        "after-3-member-7": {"member": 7, "after": 3, "sentence": "of no network"},
        "after-3-member-0": {"member": "0", "after": 3, "sentence": "damaged"},
    }.items():
        (folder / f"plasticity-test-{name}.json").write_text(json.dumps(result))
    (folder / "plasticity-test-after-2-member-1.json.copy").write_text("{")
    text = page(str(tmp_path))
    found = Page(text)
    assert "Is plasticity lost? no mitigation, seed 1, after task 2: nothing is <b>lost ( curves )" in found.text
    assert text.count("after task 2") == 1
    assert "of no network" not in text
    assert f"{folder.name}/plasticity-test-after-2-member-1.html" in found.links
    assert "after-3-member-0.json is left out: expected member as int" in found.text


def test_the_same_network_twice_counts_once(tmp_path):
    store(tmp_path, runs_of("none"), METRICS[:1], plausible)
    store(tmp_path, [Run.of(DIGITS, "none", [seed], tasks=3) for seed in (0, 1)], METRICS[:1], plausible)
    assert re.search(r'<td data-value="2">2</td>\s*</tr>', page(str(tmp_path)))  # seeds, the ranking's last column


def test_whatever_was_measured_of_a_network_is_drawn(tmp_path):
    """As where two figures train the same networks and look at different things inside."""
    for metric in ("spectral_norm", "weight_norm"):
        runs = [Run.of(DIGITS, "none", [seed], tasks=3, diagnostics=[metric]) for seed in range(6)]
        store(tmp_path, runs, ("train_accuracy", metric), plausible)
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page(str(tmp_path)), re.DOTALL)
    assert [chart["columns"]["seeds"] for chart in json.loads(data[1])["charts"]] == [6, 6, 6]


def test_the_page_does_not_take_the_place_of_a_folder(tmp_path):
    store(tmp_path / "runs", runs_of("none"), METRICS, plausible)
    (tmp_path / "site").mkdir()
    with pytest.raises(ValueError, match=r"expected a file for the page, got the folder .*site: use .*site/index.html"):
        write_page(str(tmp_path / "runs"), str(tmp_path / "site"))
    assert list((tmp_path / "site").iterdir()) == []


@pytest.mark.parametrize("out", ["index.html", "elsewhere/deep/page.html", "../beside.html"])
def test_links_lead_to_the_configurations(out, tmp_path):
    root = tmp_path / "runs #1 & more"
    store(root, runs_of("none"), METRICS, plausible)
    path = Path(write_page(str(root), str(root / out)))
    links = [link for link in Page(path.read_text()).links if link.endswith("run.json")]
    (folder,) = (each for each in root.iterdir() if (each / "run.json").exists())
    assert [(path.parent / unquote(urlsplit(link).path)).resolve() for link in links] == [
        (folder / "run.json").resolve()
    ]


def test_on_any_file_system():
    store("memory://there", runs_of("none"), METRICS, plausible)
    out = write_page("memory://there")
    assert out == "memory://there/index.html"
    found = Page(fsspec.filesystem("memory").cat_file("/there/index.html").decode())
    assert f"{DIGITS}-none-" in next(link for link in found.links if link.endswith("run.json"))


def test_names_are_text_and_never_markup(tmp_path):
    name = "<script>alert(1)</script>"
    store(tmp_path / "runs", runs_of("none", model=name), METRICS, plausible)
    assert name not in page(str(tmp_path / "runs"))


def test_the_page_is_whole_or_as_it_was(tmp_path, monkeypatch):
    store(tmp_path, runs_of("none"), METRICS, plausible)
    out = Path(write_page(str(tmp_path)))
    before = out.read_text()
    with monkeypatch.context() as patch:
        patch.setattr(type(fsspec.filesystem("file")), "mv", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_page(str(tmp_path))
    assert out.read_text() == before
    assert [path.name for path in tmp_path.glob(".*")] == []


def interrupted(*arguments, **options):
    raise KeyboardInterrupt


def test_watching_writes_a_page_that_loads_itself_until_it_ends(tmp_path, monkeypatch):
    seen, out = [], tmp_path / "index.html"

    def sleep(seconds):
        seen.append((seconds, out.read_text()))
        if len(seen) == 2:
            raise KeyboardInterrupt
        store(tmp_path, runs_of("none"), METRICS, plausible)

    monkeypatch.setattr(supple.report, "time", Clock(sleep))
    watch(str(tmp_path))
    (seconds, first), (longer, second) = seen
    assert f'<body data-every="{seconds}">' in first
    assert f'<body data-every="{longer}">' in second
    assert "There are no runs here yet" in first
    assert "2</b>networks trained" in second
    assert "<body>" in out.read_text()
    assert (seconds, longer) == (10, 15)


class Clock:
    """In which a page takes three seconds of work."""

    strftime = time.strftime

    def __init__(self, sleep):
        self.sleep, self._ticks = sleep, itertools.count(step=3)

    def process_time(self):
        return next(self._ticks)


def test_the_command(tmp_path, capsys):
    store(tmp_path / "runs", runs_of("none"), METRICS, plausible)
    cli.Report(runs=str(tmp_path / "runs"), out=str(tmp_path / "page.html"))()
    assert capsys.readouterr().out == f"page: {tmp_path / 'page.html'}\n"
    assert DIGITS in (tmp_path / "page.html").read_text()


def test_two_hundred_thousand_rows(tmp_path):
    metrics = [*METRICS, "test_accuracy", *(f"spectral_norm/{layer}" for layer in range(6))]
    runs = [
        Run.of(problem, method, [seed], tasks=125, strength=strength)
        for problem in ("label-flip-emnist", "pixel-permutation-emnist")
        for method, strengths in {"none": [0.0], "l2": [1e-4, 1e-3], "spectral": [1e-4, 1e-3], "redo": [0.1]}.items()
        for strength in strengths
        for seed in range(14)
    ]
    store(tmp_path, runs, metrics, lambda run, member, task, metric: (task * 7 + run.seeds[member] * 31) % 97 / 97)
    assert len(runs) * 125 * len(metrics) > 200_000
    began = time.process_time()  # of all threads of this process; other processes don't count
    size = Path(write_page(str(tmp_path))).stat().st_size
    assert time.process_time() - began < 10
    assert size < 15e6


def test_a_page_replaces_pages_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"expected a new file or an earlier page, got .*notes\.txt"):
        supple.report.page_of(str(tmp_path), str(tmp_path / "notes.txt"))
    (tmp_path / "page.html").write_text("<!doctype html>\n<title>supple: runs</title>")
    assert supple.report.page_of(str(tmp_path), str(tmp_path / "page.html"))


def test_a_world_that_changes_has_a_section_of_its_own(tmp_path):
    """Its charts have rules, its ranking says how well each world was learned, and its command has the options."""
    settings = {"steps": 400, "random_steps": 10, "evaluate_every": 100}
    runs = [
        control.Run.of("Pendulum-v1", "none", [0], **settings),
        control.Run.of("Pendulum-v1", "none", [0], **settings, change="actions", change_every=200),
    ]
    for run in runs:
        store(tmp_path, [run], ["return"], lambda run, member, task, metric: task + 1.25, done=run.evaluations)
    text = page(str(tmp_path))
    agents = "400 steps, preset paper, replay ratio 16"
    assert f"<h2>Pendulum-v1 ({agents})</h2>" in text
    assert f"<h2>Pendulum-v1 ({agents}, new actions every 200 steps)</h2>" in text
    assert text.count("which come after the evaluation there: new actions every 200 steps.") == 1
    assert "<span>--change actions</span> <span>--change-every 200</span>" in text
    rankings = re.findall(r'(?s)<table class="ranking">.*?</table>', text)
    (ranking,) = (ranking for ranking in rankings if "before changes" in ranking)
    assert len(rankings) == 2
    assert re.search(r'data-value="2.75">2.750</td>\s*<td data-value="3.25">3.250</td>', ranking), "of 1.25, 2.25, ..."
    drawn = json.loads(re.search(r'(?s)<script type="application/json" id="data">(.*?)</script>', text).group(1))
    marks = [[layer["mark"]["type"] for layer in spec["layer"]] for spec in drawn["specs"]]
    assert sorted(marks) == [["area", "line", "point"], ["rule", "text", "area", "line", "point"]]
