"""The benchmark of kills, with two of them."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "kills.py"


@pytest.mark.skipif(not Path("/proc").exists(), reason="only Linux tells which processes a process has started")
def test_two_kills_change_no_value():
    options = ("--kills", "2", "--tasks", "5", "--workers", "1", "--methods", "shrink-and-perturb", "--seeds", "2")
    result = subprocess.run([sys.executable, BENCHMARK, *options], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    last = result.stdout.splitlines()[-1]
    assert last.startswith("killed a worker 1 times and the sweep 1 times in ")
    assert last.endswith("are bit-for-bit identical")
