"""Kill processes of a sweep on digits at random moments, and check that its results equal those of an undisturbed one.

    python benchmarks/kills.py       # 20 kills, alternately of one worker and of the whole sweep; minutes

If a sweep ends before all kills are used up, it is compared, and another one starts in a new folder. Linux only: it
finds the workers under ``/proc``.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from polars.testing import assert_frame_equal

from supple.runs.store import load

DURATION = 0.3
"""Of a task, about, in seconds."""


@dataclass(frozen=True, kw_only=True)
class Kills:
    """Kill the processes of a sweep at random moments, resume it, and compare it with an undisturbed sweep."""

    kills: int = 20
    """Number of kills."""
    methods: tuple[str, ...] = ("none", "spectral", "shrink-and-perturb", "redo")
    """Methods of the sweep; the last two draw random numbers themselves."""
    seeds: int = 2
    """Networks per method."""
    tasks: int = 30
    """Tasks per network."""
    workers: int = 2
    """Processes at a time."""
    engine: Literal["local", "ray"] = "local"
    """Local processes, or a Ray cluster."""
    seed: int = 0
    """Seed of the random moments."""

    def __call__(self) -> None:
        moments = random.Random(self.seed)
        with tempfile.TemporaryDirectory() as scratch:
            began = time.monotonic()
            undisturbed = sweep(self, Path(scratch, "undisturbed"))
            while not ended(undisturbed):
                time.sleep(0.05)
            span = time.monotonic() - began
            expected, total = load(f"{scratch}/undisturbed"), tasks_in(Path(scratch, "undisturbed"))
            print(f"undisturbed: {span:.1f} s, {expected.height} values", flush=True)
            left = [("a worker", "the sweep")[kill % 2] for kill in range(self.kills)]
            sweeps, kills = 0, Counter[str]()
            while left or not sweeps:
                out = Path(scratch, str(sweeps))
                for victim in killed(self, moments, total, out, left):
                    kills[victim] += 1
                    print(f"killed {victim} after {tasks_in(out)} of {total} tasks", flush=True)
                assert_frame_equal(load(str(out)), expected, check_exact=True)
                sweeps += 1
            counts = " and ".join(f"{victim} {count} times" for victim, count in kills.items())
            print(f"killed {counts} in {sweeps} sweeps: all {expected.height} values of each are bit-for-bit identical")


def sweep(config: Kills, out: Path) -> "subprocess.Popen[str]":
    """Start the sweep with its ordinary command."""
    options = {"--seeds": config.seeds, "--tasks": config.tasks, "--workers": config.workers, "--out": out}
    typed = ["sweep", "random-label-digits", "--methods", *config.methods, "--epochs", "10", "--model", "mlp-2x100"]
    typed += ["--engine", config.engine, *(str(part) for pair in options.items() for part in pair)]
    program = [sys.executable, "-c", "from supple.cli import main; main()", *typed]
    return subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def workers_of(process: "subprocess.Popen[str]") -> list[int]:
    """The sweep's worker processes."""
    workers, ancestors = [], [process.pid]
    while ancestors:
        try:
            children = Path(f"/proc/{(pid := ancestors.pop())}/task/{pid}/children").read_text().split()
            names = {int(child): Path(f"/proc/{child}/cmdline").read_bytes() for child in children}
        except (FileNotFoundError, ProcessLookupError):  # one of them ended meanwhile
            continue
        workers += [child for child, name in names.items() if b"spawn_main" in name or name.startswith(b"ray::_do")]
        ancestors += names
    return workers


def ended(process: "subprocess.Popen[str]") -> bool:
    """Whether the sweep has ended; an error if it failed."""
    if process.poll():
        raise RuntimeError(f"expected the sweep to end well, got {process.returncode}: {process.communicate()[0]}")
    return process.returncode == 0


def killed(config: Kills, moments: random.Random, total: int, out: Path, left: list[str]) -> Iterator[str]:
    """Run one sweep to its end; yield the name of each victim killed, and remove it from ``left``.

    A kill comes at a random moment of a random task: most of a short sweep's time goes into starting processes.
    """
    process = sweep(config, out)
    try:
        while left:
            tasks = moments.randrange(min(tasks_in(out), total - 1), total)
            while tasks_in(out) < tasks or not workers_of(process):
                if ended(process):
                    return
                time.sleep(0.01)
            time.sleep(moments.uniform(0, DURATION))
            if not (workers := workers_of(process)):
                continue
            victim = moments.choice(workers) if left[0] == "a worker" else process.pid
            try:
                os.kill(victim, signal.SIGKILL)
            except ProcessLookupError:  # it ended by itself before
                continue
            if victim == process.pid:
                process.communicate()
                process = sweep(config, out)
            yield left.pop(0)
        while not ended(process):
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()


def tasks_in(out: Path) -> int:
    """The number of tasks measured so far."""
    try:
        return load(str(out)).n_unique(["run", "task"])
    except FileNotFoundError:
        return 0


if __name__ == "__main__":
    tyro.cli(Kills)()
