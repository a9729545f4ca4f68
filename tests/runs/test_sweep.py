"""Many processes at once: what they do, what they tell, and how they end."""

import ast
import io
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

from supple.errors import FailedWorkError, LostWorkersError
from supple.runs import progress, sweep
from supple.runs.sweep import available_cores, work_through
from support import worker_jobs


@pytest.fixture
def quick_workers(monkeypatch):
    """Workers that are forks of a process with torch, which start faster; the pool treats them as any others."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["supple.runs.sweep"])
    monkeypatch.setattr(sweep.multiprocessing, "get_context", lambda method: context)


def test_work_is_done_and_progress_arrives(tmp_path, monkeypatch):
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    monkeypatch.setenv("MALLOC_TOP_PAD_", "4096")  # what the user has set stays
    environment, reports = dict(os.environ), {}
    jobs = [(str(tmp_path), str(number)) for number in range(5)]
    work_through(jobs, worker_jobs.notes, workers=2, report=lambda job, done: reports.setdefault(job, []).append(done))
    assert reports == {job: [0.5, 1.0] for job in jobs}
    assert dict(os.environ) == environment
    notes = [ast.literal_eval((tmp_path / name).read_text()) for _, name in jobs]
    processes = {process for process, _, _ in notes}
    assert os.getpid() not in processes
    assert len(processes) <= 2
    for _, threads, (_, trim, pad) in notes:
        assert (threads, trim, pad) == (1, "1073741824", "4096")


@pytest.mark.usefixtures("quick_workers")
def test_a_job_of_which_more_is_left_goes_on(tmp_path):
    done = {(str(tmp_path), str(number)): 0.0 for number in range(3)}
    work_through(done, worker_jobs.in_pieces, workers=2, report=done.__setitem__)
    assert list(done.values()) == [3, 3, 3]
    assert {path.read_text().count("piece") for path in tmp_path.iterdir()} == {3}


@pytest.mark.usefixtures("quick_workers")
def test_the_memory_of_a_job_is_free_for_the_next():
    work_through([1, 2], worker_jobs.leave_a_cycle, workers=1, report=lambda job, done: None)


@pytest.mark.usefixtures("quick_workers")
def test_an_error_arrives_in_a_sentence_and_stops_the_rest(tmp_path):
    environment = dict(os.environ)
    jobs = [(str(tmp_path), str(number)) for number in range(9)]
    place = r"expected no error in .*worker_jobs.py:\d+ \(fails_first\), got UnluckyError: no luck today: correct it"
    with pytest.raises(FailedWorkError, match=place):
        work_through(jobs, worker_jobs.fails_first, workers=1, report=lambda job, done: None)
    assert len(list(tmp_path.iterdir())) <= 2  # what was on its way already
    assert dict(os.environ) == environment


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        ("reports_a_lot", "[5000, 5000]"),
        ("fails_beside_long_work", "(fails_beside_long_work), got UnluckyError: no luck today\n[0.0, 0.0]"),
    ],
    ids=["many reports", "an error"],
)
def test_it_comes_to_an_end(work, expected, tmp_path):
    with started(work, tmp_path) as process:
        try:
            output, _ = process.communicate(timeout=120)  # on a loaded machine to import torch takes long
        except subprocess.TimeoutExpired:
            pytest.fail("expected the end within seconds, got none: a worker is waited for")
        finally:
            end(process)
    assert output.strip() == expected


def started(work, folder):
    command = [sys.executable, worker_jobs.__file__, work, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


def end(process):
    """The workers too: they hang where their parent does."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    with started("waits", tmp_path) as process:
        try:
            files = [tmp_path / "0", tmp_path / "1"]
            until(lambda: all(file.exists() for file in files))
            workers = [int(file.read_text()) for file in files]
            for worker in workers:
                os.kill(worker, signal.SIGINT)  # as a terminal does, to all of them: theirs is nobody's business
            time.sleep(0.1)
            assert all(map(alive, workers))
            process.kill()
            until(lambda: not any(map(alive, workers)))
        finally:
            end(process)


def until(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(process):
    status = Path(f"/proc/{process}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# Workers that are lost.


@pytest.mark.usefixtures("quick_workers")
def test_a_job_whose_worker_dies_is_begun_again(tmp_path):
    reports = {}
    jobs = [(str(tmp_path), "0"), (str(tmp_path), "1")]
    work_through(
        jobs, worker_jobs.dies_once, workers=1, report=lambda job, done: reports.setdefault(job, []).append(done)
    )
    assert [reports[job][-1] for job in jobs] == [1.0, 1.0]


@pytest.mark.usefixtures("quick_workers")
def test_workers_that_die_one_after_the_other_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "RETRIES", 1)
    with pytest.raises(LostWorkersError, match="got 2 crashes in a row with 1 jobs left"):
        work_through([(str(tmp_path), "0")], worker_jobs.dies_always, workers=1, report=lambda job, done: None)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.usefixtures("quick_workers")
def test_workers_may_die_as_often_as_they_like_where_work_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "RETRIES", 0)
    done = {(str(tmp_path), "0"): 0.0}
    work_through(done, worker_jobs.dies_after_each_step, workers=1, report=done.__setitem__)
    assert list(done.values()) == [3.0]


def test_nothing_to_do():
    work_through([], worker_jobs.notes, report=lambda job, done: pytest.fail("nothing was done"))


@pytest.mark.skipif(not Path("/proc").exists(), reason="only Linux tells which cores a process may use")
def test_only_cores_that_may_be_used_count():
    assert available_cores() == len(os.sched_getaffinity(0))


def test_a_log_has_a_line_of_progress_now_and_then(monkeypatch, capsys):
    monkeypatch.setattr(progress, "EVERY", 0.01)
    with progress.progress_of({"a": ("kind", 3.0), "b": ("kind", 1.0)}) as report:
        report("a", 0.0)
        report("a", 2.0)
        time.sleep(0.05)
        report("a", 3.0)
        report("b", 1.0)
    first, *_, last = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"progress: 50% of 2 runs after 0:00:00, about 0:00:00 left", first)
    assert last == "progress: 100% of 2 runs after 0:00:00"


def test_what_was_done_before_is_no_speed_of_a_bar(monkeypatch):
    shown = []
    monkeypatch.setattr(progress, "Progress", lambda *columns, **options: shown.append(Progress()) or shown[0])
    with progress._bars({"a": ("kind", 10.0)}, Console(force_terminal=True, file=io.StringIO())) as report:
        report("a", 5.0)
        assert [(task.completed, task.speed) for task in shown[0].tasks] == [(5.0, None)] * 2
        report("a", 6.0)
        assert [task.completed for task in shown[0].tasks] == [6.0] * 2


def test_what_was_done_before_does_not_shorten_what_is_left(monkeypatch, capsys):
    """Ten seconds for the sixth of ten tasks: four more need forty."""
    seconds = iter([0.0, 10.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))
    with progress.progress_of({"a": ("kind", 10.0)}) as report:
        report("a", 5.0)
        report("a", 6.0)
    assert capsys.readouterr().out == "progress: 60% of 1 run after 0:00:10, about 0:00:40 left\n"
