"""What is said about a Ray cluster before it is asked for work."""

import importlib.util
import subprocess

import pytest

from supple.runs import cluster

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="ray is not installed")


@pytest.mark.parametrize("gpus", [0.0, 0.25, 1.0, 2.0])
def test_shares_of_a_gpu(gpus):
    cluster.check(gpus, None)


@pytest.mark.parametrize("gpus", [-1.0, 1.5, float("nan"), float("inf")])
def test_shares_that_ray_does_not_have(gpus):
    with pytest.raises(ValueError, match=f"expected a share of a GPU from 0 to 1, or a whole number.*got {gpus}"):
        cluster.check(gpus, None)


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (subprocess.TimeoutExpired("python", 1), "no answer within 20 seconds"),
        (subprocess.CalledProcessError(1, "python", stderr="Traceback\nOSError: nobody there\n"), "nobody there"),
    ],
)
def test_a_cluster_that_does_not_answer(monkeypatch, error, why):
    def run(command, *, timeout, **_):
        assert (command[-1], timeout) == ("host:6379", cluster.ANSWER_TIMEOUT)
        raise error

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(ValueError, match=rf"^expected the address of a running .*got 'host:6379' \(.*{why}\)"):
        cluster.check(0.0, "host:6379")


def test_what_was_done_before_is_told_first():
    def work(job, report):
        for done in (2.0, 2.5, 3.0):
            report(done)
        return True

    assert cluster._do(work, "job", 1) == ([2.0, 3.0], True)
