"""Runs on disk: names by content, files whole or absent whatever happens, and all of them read back together."""

import errno
import io
import json
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import ClassVar

import fsspec
import polars as pl
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from supple.runs.digests import BLANK, with_digest
from supple.runs.folder import Checkpoint, RunFolder, hardware_and_versions
from supple.runs.resume import work_on
from supple.runs.store import NO_ROWS, SCHEMA, configurations, load, stored

OLD = {"problem": "p", "method": "m", "strengths": (0.5, 0.25), "seeds": (7, 1), "tasks": 2, "model": "mlp"}
CONFIG = OLD | {"scale": "quick", "options": "{}"}
FILES = ("run.json", "environment.json", "metrics.parquet", "checkpoint.pt")
STATE = {"parameters": {"weight": torch.arange(6.0).view(2, 3)}, "random": torch.arange(3, dtype=torch.uint8)}


def rows_of(tasks):
    """Task after task, what is measured of both members."""
    rows = [
        (member, task, metric, member + task / 4)
        for task in range(tasks)
        for metric in ("train_loss", "train_accuracy")
        for member in (0, 1)
    ]
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def checkpoint_of(tasks):
    return Checkpoint(tasks, STATE, rows_of(tasks), 1.26 * tasks)


def saved(root, tasks=2, **changes):
    folder = RunFolder(str(root), CONFIG | changes)
    with folder.locked():
        folder.begin(subset=False)
        for task in range(tasks):
            folder.save(checkpoint_of(task + 1))
    return folder


@pytest.fixture(params=["path", "address", "memory"])
def root(request, tmp_path):
    """Any place that runs may be kept in."""
    if request.param == "memory":
        MemoryFileSystem.store.clear()
        MemoryFileSystem.pseudo_dirs[:] = [""]
    return {"path": str(tmp_path), "address": f"file://{tmp_path}", "memory": "memory://runs/deeper"}[request.param]


def files_in(folder, root):
    """Name to content."""
    files, _ = fsspec.url_to_fs(root)
    return {path.rsplit("/", 1)[-1]: files.cat_file(path) for path in files.ls(folder.path, detail=False)}


# Names.


@pytest.mark.parametrize("name", ["[old] runs", "step [1e-3]", "which?", "all*", "a!b"])
def test_a_folder_on_disk_may_have_any_name(name, tmp_path):
    folder = saved(tmp_path / name)
    for root in (f"{tmp_path}/{name}", f"file://{tmp_path}/{name}"):
        assert list(configurations(root)) == list(stored(root)) == [folder.name]
        assert len(load(root)) == len(rows_of(2))


@pytest.mark.parametrize(
    "change",
    [{"strengths": (0.5, 1.0)}, {"seeds": (7, 2)}, {"seeds": (1, 7)}, {"tasks": 3}, {"model": "mlp2"}, {"new": 0}],
)
def test_every_value_counts_in_the_name(change, tmp_path):
    assert RunFolder(str(tmp_path), CONFIG | change).path != RunFolder(str(tmp_path), CONFIG).path


def test_the_order_of_keys_does_not_count(tmp_path):
    backwards = dict(reversed(CONFIG.items()))
    assert RunFolder(str(tmp_path), backwards).path == RunFolder(str(tmp_path), CONFIG).path


def test_names_never_change(tmp_path):
    folder = RunFolder(str(tmp_path), OLD)
    assert folder.path == f"{tmp_path}/{folder.name}"
    assert folder.name == "p-m-d893759e110d"  # or no run that is on disk would be found again


# What is saved comes back.


def test_what_is_saved_comes_back(root):
    folder = RunFolder(root, CONFIG)
    with folder.locked():
        assert folder.begin(machine="mine") is None
        assert not folder.finished(2)
        for task in (0, 1):
            assert not folder.finished(2)
            folder.save(checkpoint_of(task + 1))
        assert folder.finished(2)
        found = folder.begin(machine="mine")
    assert (found.finished, found.seconds) == (2, 2.52)
    assert_frame_equal(found.rows, rows_of(2))
    torch.testing.assert_close(found.state, STATE, rtol=0, atol=0)
    content = files_in(folder, root)
    assert set(content) - {".lock"} == set(FILES)
    assert_frame_equal(pl.read_parquet(content["metrics.parquet"]), rows_of(2))
    assert json.loads(content["run.json"]) == CONFIG | {"seeds": [7, 1], "strengths": [0.5, 0.25]}
    plain = torch.load(io.BytesIO(content["checkpoint.pt"]), weights_only=True)
    torch.testing.assert_close(plain["state"], STATE, rtol=0, atol=0)


def test_the_environment_is_written_down(root):
    folder = RunFolder(root, CONFIG)
    with folder.locked():
        folder.begin(machine="mine")
        expected = hardware_and_versions() | {"machine": "mine"}
        written = [json.loads(files_in(folder, root)["environment.json"])]
        folder.save(checkpoint_of(1))
        written += [json.loads(files_in(folder, root)["environment.json"])]
        folder.begin(machine="mine")
        written += [json.loads(files_in(folder, root)["environment.json"])]
    assert [each.pop("seconds") for each in written] == [0.0, 1.3, 1.3]  # a new start forgets no time
    assert all(each["began"] >= expected["began"] for each in written)
    assert [each | {"began": expected["began"]} for each in written] == [expected] * 3
    assert (expected["torch"], expected["threads"]) == (torch.__version__, torch.get_num_threads())


@pytest.mark.parametrize(("tasks", "finished"), [(1, False), (2, True), (3, False)])
def test_a_run_is_finished_when_every_task_is_measured(tasks, finished, root):
    assert saved(root).finished(tasks) is finished


def test_rows_of_nothing_and_of_what_is_not_a_number(tmp_path):
    folder = RunFolder(str(tmp_path), CONFIG)
    odd = rows_of(1).with_columns(value=pl.Series([float("nan"), float("inf"), -0.0, 1e-310]))
    for rows in (NO_ROWS, odd):
        folder.begin() if rows is odd else folder.locked().__enter__()
        folder.save(Checkpoint(1, STATE, rows, 0.0))
        assert_frame_equal(folder.begin().rows, rows)


# All or nothing.


class StoppedError(BaseException):
    """As if the process were killed: nothing else runs."""


class Dying(LocalFileSystem):
    """Dies in the middle of the given call."""

    protocol = "dying"
    cachable = False
    left = 10**9
    error: type[BaseException] = StoppedError

    def _count(self):
        type(self).left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, "No space left on device") if self.error is OSError else self.error

    def pipe_file(self, path, value, mode="overwrite", **options):
        self._count()
        try:
            super().pipe_file(path, value[: len(value) // 2])
            self._count()
        finally:
            if Dying.left >= 0:
                super().pipe_file(path, value)

    def mv(self, path1, path2, **options):
        self._count()
        super().mv(path1, path2, **options)

    def rm_file(self, path):
        if self.left < 0 and self.error is StoppedError:
            raise self.error  # the dead clean nothing up
        super().rm_file(path)


@pytest.fixture
def dying(monkeypatch):
    fsspec.register_implementation("dying", Dying, clobber=True)
    monkeypatch.setattr(Dying, "left", 10**9)
    return Dying


def calls_of(work):
    """How many times the file system may die in it."""
    before = Dying.left
    work()
    return before - Dying.left


def whole(tmp_path, tasks):
    """Every visible file of a run reads as something that was written at one time."""
    folder = RunFolder(str(tmp_path), CONFIG)
    found = {name: content for name, content in files_in(folder, str(tmp_path)).items() if not name.startswith(".")}
    if "metrics.parquet" in found:
        rows = pl.read_parquet(found["metrics.parquet"])
        assert any(rows.equals(rows_of(task)) for task in range(tasks + 1))
    for name in ("run.json", "environment.json"):
        assert json.loads(found.get(name, b"{}")) is not None
    checkpoint = folder.checkpoint()
    assert (checkpoint is None) == ("checkpoint.pt" not in found)
    return checkpoint


@pytest.mark.parametrize("error", [StoppedError, OSError], ids=["killed", "disk full"])
def test_files_are_whole_whenever_it_dies(error, dying, tmp_path, monkeypatch):
    monkeypatch.setattr(dying, "error", error)
    total = calls_of(lambda: saved(f"dying://{tmp_path}/sound"))
    assert total == 3 * (2 + 2 * 3)  # of 2 files to begin with and 3 a task: half of it, the rest, its name
    for moment in range(total):
        place = tmp_path / str(moment)
        monkeypatch.setattr(dying, "left", moment)
        with pytest.raises(error, match=str(place) if error is OSError else None):  # a full disk names the file
            saved(f"dying://{place}")
        checkpoint = whole(place, 2)
        assert (checkpoint.finished if checkpoint else 0) == max(0, (moment - 6) // 9)
        if error is OSError:
            assert not any(
                name.startswith(".") for name in files_in(RunFolder(str(place), CONFIG), str(place)) if name != ".lock"
            )
        folder = saved(place)  # and it goes on from there
        assert folder.finished(2)
        assert set(files_in(folder, str(place))) - {".lock"} == set(FILES)
        assert_frame_equal(load(str(place)).select(*SCHEMA), rows_of(2))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "content", [b"", b"half of", b"\xff\xfe[]", b"[1, 2]", b"{}", b"null", with_digest(b"x" + BLANK)]
)
def test_a_file_that_was_planted_is_mended(name, content, root):
    folder = saved(root)
    files, _ = fsspec.url_to_fs(root)
    files.pipe_file(f"{folder.path}/{name}", content)
    mends(folder, root, name)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing_is_written_again(name, root):
    folder = saved(root)
    files, _ = fsspec.url_to_fs(root)
    files.rm_file(f"{folder.path}/{name}")
    mends(folder, root, name)


@settings(max_examples=120)
@given(name=st.sampled_from(FILES), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_bit_that_changes_is_noticed_or_does_not_matter(name, place, bit, tmp_path_factory):
    root = tmp_path_factory.mktemp("flipped")
    folder = saved(root)
    path = Path(folder.path, name)
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    path.write_bytes(content)
    mends(folder, str(root), name)


@settings(max_examples=50)
@given(name=st.sampled_from(FILES), share=st.floats(0, 1, exclude_max=True))
def test_a_file_that_was_cut_off_is_mended(name, share, tmp_path_factory):
    root = tmp_path_factory.mktemp("cut")
    folder = saved(root)
    path = Path(folder.path, name)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    mends(folder, str(root), name)


def mends(folder, root, name):
    """One of its files being damaged, a run is found to be so, or the damage changed no value; then it is mended."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        there = folder.name in configurations(root) and folder.finished(2)
        try:
            rows = load(root)
        except FileNotFoundError:
            rows = None
        assert rows is not None or not there
        if rows is not None:
            assert_frame_equal(rows.select(*SCHEMA), rows_of(2))
            assert rows["seed"].unique(maintain_order=True).to_list() == [7, 1]
        assert there or name != "checkpoint.pt"  # nobody needs it any more
        if not there:
            with folder.locked():
                checkpoint = folder.begin(subset=False)
                if checkpoint is None:
                    folder.save(checkpoint_of(2))
                else:
                    assert_frame_equal(checkpoint.rows, rows_of(2))
                    torch.testing.assert_close(checkpoint.state, STATE, rtol=0, atol=0)
    if name != "checkpoint.pt":
        assert folder.finished(2)
        assert_frame_equal(load(root).select(*SCHEMA), rows_of(2))


def parquet(rows):
    buffer = io.BytesIO()
    rows.write_parquet(buffer, metadata={"supple": BLANK.decode()})
    return with_digest(buffer.getvalue())


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("environment.json", b'{"seconds": null}', "expected seconds as a number"),
        ("environment.json", b'{"seconds": "1"}', "expected seconds as a number"),
        ("environment.json", b'{"seconds": NaN}', "not JSON compliant"),
        ("environment.json", b'{"subset": [1]}', "subset as true or false"),
        ("environment.json", b'{"torch": ["2"]}', "expected one value of each fact, got a list"),
        ("environment.json", b'{"torch": {"is": 2}}', "expected a plain value as torch"),
        ("environment.json", b"[" * 10**5, "maximum recursion depth"),
        ("metrics.parquet", parquet(pl.DataFrame({"a": [1]})), "expected the columns member, task, metric, value"),
        ("metrics.parquet", parquet(rows_of(2).with_columns(metric=pl.lit(None, pl.String))), "without gaps"),
        ("metrics.parquet", parquet(rows_of(3)), "expected each task from 0 to 1"),
        ("metrics.parquet", parquet(rows_of(2).with_columns(pl.col("member") + 1)), "expected each member from 0 to 1"),
    ],
)
def test_one_odd_file_leaves_out_one_folder_and_says_why(name, content, why, tmp_path):
    odd, sound = saved(tmp_path), saved(tmp_path, model="other")
    Path(odd.path, name).write_bytes(content)
    with pytest.warns(UserWarning, match="is left out") as told:
        assert stored(str(tmp_path)).keys() == {sound.name}
    (message,) = (str(each.message) for each in told)
    assert message.startswith(f"{odd.path} is left out: its {name} can't be read (")
    assert why in message
    assert not odd.finished(2)
    odd.begin()
    assert stored(str(tmp_path)).keys() == {odd.name, sound.name}


@pytest.mark.parametrize(
    "change",
    [{"tasks": "2"}, {"seeds": 7}, {"seeds": (7,)}, {"seeds": ("7", "1")}, {"strengths": (None, 1)}, {"scale": None}],
)
def test_an_odd_configuration_leaves_out_its_folder(change, tmp_path):
    sound = saved(tmp_path)
    with RunFolder(str(tmp_path), CONFIG | change).locked():
        RunFolder(str(tmp_path), CONFIG | change).begin()
    with pytest.warns(UserWarning, match=r"is left out: expected .* in its run.json"):
        assert configurations(str(tmp_path)).keys() == {sound.name}


def test_a_link_to_a_folder_is_a_folder(tmp_path):
    folder = saved(tmp_path / "runs")
    Path(folder.path).rename(tmp_path / "elsewhere")
    Path(folder.path).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "runs" / "nowhere").symlink_to(tmp_path / "not there")
    assert len(load(str(tmp_path / "runs"))) == len(rows_of(2))
    with folder.locked():
        assert folder.finished(2)


def test_a_checkpoint_of_something_else_counts_as_none(tmp_path):
    folder = saved(tmp_path)
    path = Path(folder.path, "checkpoint.pt")
    sound = torch.load(path, weights_only=True)
    for change in ({"finished": "2"}, {"state": None}, {"seconds": [1]}, {"more": 1}):
        content = io.BytesIO()
        torch.save(sound | change, content)
        path.write_bytes(with_digest(content.getvalue() + BLANK))
        with pytest.warns(UserWarning, match=r"checkpoint.pt can't be read, the run restarts"):
            assert folder.checkpoint() is None


def test_a_damaged_checkpoint_is_said_and_counts_as_none(tmp_path):
    folder = saved(tmp_path)
    Path(folder.path, "checkpoint.pt").write_bytes(b"half")
    with folder.locked(), pytest.warns(UserWarning, match=r"checkpoint.pt can't be read, the run restarts"):
        assert folder.begin() is None


def test_a_run_that_must_restart_keeps_no_old_measurements(tmp_path):
    folder = saved(tmp_path)
    folder.forget()
    assert folder.checkpoint() is None
    assert stored(str(tmp_path))[folder.name].rows.is_empty()


def test_what_a_killed_process_left_is_cleared_away_and_nothing_else(tmp_path):
    folder = saved(tmp_path)
    Path(folder.path, ".checkpoint.pt.elsewhere.99").write_bytes(b"half")
    Path(folder.path, ".notes").write_text("not ours")
    Path(folder.path, ".run.json.folder.1").mkdir()
    with folder.locked():
        names = {path.name for path in Path(folder.path).iterdir()}
    assert names == {*FILES, ".lock", ".notes", ".run.json.folder.1"}


# Several at once.

HOLDER = """
import sys
from supple.runs.folder import RunFolder
with RunFolder(sys.argv[1], {"problem": "p", "method": "m"}).locked():
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_folder_is_held_by_one_process_until_it_dies(tmp_path):
    held = threading.Event()

    def hold():
        with RunFolder(str(tmp_path), {"problem": "p", "method": "m"}).locked():
            held.set()

    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], **pipes) as other:
        assert other.stdout.readline() == "held\n"
        waiting = threading.Thread(target=hold)
        waiting.start()
        assert not held.wait(0.5)
        other.kill()
        assert held.wait(10)
        waiting.join()


class Remembering(LocalFileSystem):
    """As the file systems of object stores do, it lists a folder once and remembers the answer."""

    protocol = "remembering"

    def ls(self, path, detail=False, **options):
        if not self.dircache.use_listings_cache:
            return super().ls(path, detail=detail, **options)
        if path not in self.dircache:
            self.dircache[path] = super().ls(path, detail=True)
        entries = self.dircache[path]
        return entries if detail else [entry["name"] for entry in entries]


def test_what_others_have_written_meanwhile_is_seen(tmp_path):
    fsspec.register_implementation("remembering", Remembering, clobber=True)
    root = f"remembering://{tmp_path}"
    assert configurations(root) == {}
    folder = saved(tmp_path)  # by another process, as far as this file system knows
    assert configurations(root).keys() == {folder.name}
    assert load(root).height == rows_of(2).height


# All of them together.


def test_load_puts_the_configuration_beside_each_row(root):
    first = saved(root)
    second = saved(root, tasks=1, strengths=(1.5, 0.0), seeds=(0, 0), width=64, examples=None)
    with RunFolder(root, CONFIG | {"model": "begun"}).locked():
        RunFolder(root, CONFIG | {"model": "begun"}).begin()  # nothing measured yet
    files, path = fsspec.url_to_fs(root)
    files.pipe_file(f"{path}/chart.svg", b"")
    rows = load(root)
    assert not {"seeds", "strengths"} & set(rows.columns)
    by_run = {name: rows.filter(pl.col("run") == name) for name in rows["run"].unique()}
    assert by_run.keys() == {first.name, second.name}
    for folder, measured, members, expected in [
        (first, rows_of(2), [(7, 0.5), (1, 0.25)], ("p", "m", "mlp", None, False)),
        (second, rows_of(1), [(0, 1.5), (0, 0.0)], ("p", "m", "mlp", 64, False)),
    ]:
        found = by_run[folder.name]
        assert_frame_equal(found.select(*SCHEMA), measured)  # in the order in which it was measured
        assert found.select("seed", "strength").rows() == [members[member] for member in measured["member"]]
        assert set(found.select("problem", "method", "model", "width", "subset").rows()) == {expected}
    assert_frame_equal(load(root, {second.name}).select(*SCHEMA), rows_of(1))


def test_load_goes_by_the_names_of_the_folders(tmp_path):
    names = [saved(tmp_path, model=model).name for model in "cab"]
    assert load(str(tmp_path))["run"].unique(maintain_order=True).to_list() == sorted(names)


def test_runs_on_other_data_of_one_name_are_named(tmp_path):
    """Those on another data set, or from before the fingerprint was written, are not."""
    kept = [("moons", "4 1.5 6"), ("moons", "4 1.5 6"), ("digits", "9 1 2"), ("moons", None)]
    for number, (dataset, data) in enumerate([*kept, ("moons", "4 2.5 6")]):
        if number == len(kept):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                load(str(tmp_path))
        folder = RunFolder(str(tmp_path), CONFIG | {"dataset": dataset, "number": number})
        with folder.locked():
            folder.begin(**({"data": data} if data else {}))
            folder.save(checkpoint_of(2))
    with pytest.warns(UserWarning, match=r"was trained on other data than .*, both called moons: compare them in"):
        load(str(tmp_path))


def test_runs_of_another_kind_are_left_out(tmp_path):
    saved(tmp_path)
    other = RunFolder(str(tmp_path), {"problem": "quadruped-run", "method": "spectral", "horizon": [1, 2]})
    with other.locked():
        other.begin()
        other.save(checkpoint_of(1))
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "run.json").write_text('{"kind": "not ours"}')
    with pytest.warns(UserWarning, match="is left out") as told:
        rows = load(str(tmp_path))
    assert_frame_equal(rows.select(*SCHEMA), rows_of(2))
    assert [str(each.message) for each in told] == [
        f"{foreign} is left out: its run.json lacks problem, scale, method, options, tasks, seeds, strengths",
        f"{other.path} is left out: its run.json lacks scale, options, tasks, seeds, strengths",
    ]


def test_the_configuration_of_another_run_is_no_configuration(tmp_path):
    first, second = saved(tmp_path), saved(tmp_path, model="other")
    Path(first.path, "run.json").write_bytes(Path(second.path, "run.json").read_bytes())
    with pytest.warns(UserWarning, match=f"{first.name} is left out: expected the folder name {second.name}"):
        assert configurations(str(tmp_path)).keys() == {second.name}


def test_nothing_to_load(root):
    with pytest.raises(FileNotFoundError, match=r"a finished task in .*, found none: make some with `supple run`"):
        load(root)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_nobody_waits_for_a_pipe(tmp_path):
    folder = tmp_path / "problem-method-0123456789ab"
    folder.mkdir()
    os.mkfifo(folder / "run.json")
    with pytest.warns(UserWarning, match=r"run\.json can't be read \(it is not a regular file\)"):
        assert configurations(str(tmp_path)) == {}


def test_runs_of_one_data_set_with_other_numbers_of_examples_are_not_named(tmp_path):
    for examples, data in ((None, "4 1.5 6"), (2, "2 0.5 1")):
        folder = RunFolder(str(tmp_path), CONFIG | {"dataset": "moons", "examples": examples})
        with folder.locked():
            folder.begin(data=data)
            folder.save(checkpoint_of(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(str(tmp_path))


class Counting:
    """Work whose state is the number of its parts."""

    facts: ClassVar = {}

    def __init__(self):
        self.done = 0

    def learn(self, part, report):
        self.done += 1
        return rows_of(part + 1).filter(pl.col("task") == part)

    def state_dict(self):
        return {"done": self.done}

    def load_state_dict(self, state):
        self.done = state["done"]


def test_training_time_goes_on_from_the_checkpoints(tmp_path):
    folder = RunFolder(str(tmp_path), CONFIG)
    with folder.locked():
        folder.begin()
        folder.save(checkpoint_of(1)._replace(state={"done": 1}, seconds=1000.0))
    work_on(folder, 2, Counting, lambda amount: None)
    assert folder.checkpoint().seconds >= 1000
    assert stored(str(tmp_path))[folder.name].environment["seconds"] >= 1000
