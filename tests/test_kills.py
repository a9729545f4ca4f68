"""The benchmark of kills, with one."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "kills.py"


@pytest.mark.skipif(not Path("/proc").exists(), reason="only Linux tells which processes a process has started")
def test_a_kill_changes_no_value():
    options = ("--kills", "1", "--tasks", "3", "--workers", "1", "--methods", "shrink-and-perturb", "--seeds", "1")
    result = subprocess.run([sys.executable, BENCHMARK, *options], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    last = result.stdout.splitlines()[-1]
    assert last.startswith("killed a worker 1 times in ")
    assert last.endswith("are bit-for-bit identical")
