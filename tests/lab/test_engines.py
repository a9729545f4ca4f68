"""Training by other processes: whoever does the work, and whoever is killed at it, the numbers are the same."""

import importlib.util
from functools import partial

import pytest
from polars.testing import assert_frame_equal

from supple.lab.run import Run
from supple.lab.trainer import train
from supple.runs import cluster, sweep
from supple.runs.store import load
from support import worker_jobs

# 70 steps a task, and a report after 50 of them.
RUNS = [
    Run.of("random-label-digits", method, seeds, epochs=10, tasks=2, model="mlp-2x100", diagnostics=["spectral_norm"])
    for method, seeds in (("spectral", (0, 1)), ("shrink-and-perturb", (2,)))
]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What this process measures by itself."""
    root = str(tmp_path_factory.mktemp("undisturbed"))
    for run in RUNS:
        train(run, root=root)
    return load(root)


def test_a_worker_that_is_killed_in_mid_task_changes_no_number(expected, tmp_path):
    work, done = partial(worker_jobs.training_that_dies, root=str(tmp_path)), dict.fromkeys(RUNS, 0.0)
    sweep.work_through(RUNS[:1], work, workers=1, report=done.__setitem__)
    assert len(list(tmp_path.glob("died.*"))) == 1
    assert list(done.values()) == [2, 0]
    assert_frame_equal(load(str(tmp_path)), expected.filter(method="spectral"), check_exact=True)


@pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="ray is not installed")
def test_a_cluster_measures_the_same(expected, tmp_path):
    work, done = partial(train, root=str(tmp_path), pieces=2), dict.fromkeys(RUNS, 0.0)
    cluster.work_through(RUNS, work, workers=1, report=done.__setitem__)
    assert done == dict.fromkeys(RUNS, 2)
    assert_frame_equal(load(str(tmp_path)), expected, check_exact=True)
