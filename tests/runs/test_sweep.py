"""Many processes at once: what they do, what they tell, and how they end."""

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import lab_workers
from supple.runs.sweep import available_cores, work_through


def test_work_is_done_and_progress_arrives(tmp_path, monkeypatch):
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    monkeypatch.setenv("MALLOC_TOP_PAD_", "4096")  # what the user has set stays
    environment, reports = dict(os.environ), {}
    jobs = [(str(tmp_path), str(number)) for number in range(5)]
    work_through(jobs, lab_workers.notes, workers=2, report=lambda job, done: reports.setdefault(job, []).append(done))
    assert reports == {job: [0.5, 1.0] for job in jobs}
    assert dict(os.environ) == environment
    notes = [ast.literal_eval((tmp_path / name).read_text()) for _, name in jobs]
    processes = {process for process, _, _ in notes}
    assert os.getpid() not in processes
    assert len(processes) <= 2
    for _, threads, (_, trim, pad) in notes:
        assert (threads, trim, pad) == (1, "1073741824", "4096")


def test_a_job_of_which_more_is_left_goes_on(tmp_path):
    done = {(str(tmp_path), str(number)): 0.0 for number in range(3)}
    work_through(done, lab_workers.in_pieces, workers=2, report=done.__setitem__)
    assert list(done.values()) == [3, 3, 3]
    assert {path.read_text().count("piece") for path in tmp_path.iterdir()} == {3}


def test_an_error_arrives_as_it_was_and_stops_the_rest(tmp_path):
    environment = dict(os.environ)
    jobs = [(str(tmp_path), str(number)) for number in range(9)]
    with pytest.raises(lab_workers.UnluckyError, match="no luck today"):
        work_through(jobs, lab_workers.fails_first, workers=1, report=lambda job, done: None)
    assert len(list(tmp_path.iterdir())) <= 2  # what was on its way already
    assert dict(os.environ) == environment


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        ("reports_a_lot", "[5000, 5000]"),
        ("fails_beside_long_work", "error: no luck today\n[0.0, 0.0]"),
    ],
    ids=["many reports", "an error"],
)
def test_it_comes_to_an_end(work, expected):
    command = [sys.executable, lab_workers.__file__, work]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            output, _ = process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            pytest.fail("expected the end within seconds, got none: a worker is waited for")
        finally:
            end(process)
    assert output.strip() == expected


def end(process):
    """The workers too: they hang where their parent does."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def test_nothing_to_do():
    work_through([], lab_workers.notes, report=lambda job, done: pytest.fail("nothing was done"))


@pytest.mark.skipif(not Path("/proc").exists(), reason="only Linux tells which cores a process may use")
def test_only_cores_that_may_be_used_count():
    assert available_cores() == len(os.sched_getaffinity(0))
