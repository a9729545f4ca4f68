"""A sweep on digits whose processes are killed at random moments: it ends with the values of one that was left alone.

    python benchmarks/kills.py                   # 20 kills, of a worker and of the whole sweep in turn

A sweep that ends before all kills are spent is compared, and another begun in a fresh folder. Linux alone: it finds
the workers under ``/proc``.
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


@dataclass(frozen=True, kw_only=True)
class Kills:
    """Kill the processes of a sweep at random moments, go on with it, and compare with one that was left alone."""

    kills: int = 20
    """How many."""
    methods: tuple[str, ...] = ("none", "spectral", "shrink-and-perturb", "redo")
    """What is swept; the last two draw random numbers of their own."""
    seeds: int = 2
    """Networks for each."""
    tasks: int = 30
    """Of each network, some tenths of a second each."""
    workers: int = 2
    """Processes at a time."""
    engine: Literal["local", "ray"] = "local"
    """Which processes."""
    seed: int = 0
    """Of the moments."""


def sweep(config: Kills, out: Path) -> "subprocess.Popen[str]":
    """The command as anyone types it."""
    options = {"--seeds": config.seeds, "--tasks": config.tasks, "--workers": config.workers, "--out": out}
    typed = ["sweep", "random-label-digits", "--methods", *config.methods, "--epochs", "10", "--model", "mlp-2x100"]
    typed += ["--engine", config.engine, *(str(part) for pair in options.items() for part in pair)]
    program = [sys.executable, "-c", "from supple.cli import main; main()", *typed]
    return subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def workers_of(process: "subprocess.Popen[str]") -> list[int]:
    """The processes that train for it."""
    found, ancestors = [], [process.pid]
    while ancestors:
        try:
            children = Path(f"/proc/{(pid := ancestors.pop())}/task/{pid}/children").read_text().split()
            names = {int(child): Path(f"/proc/{child}/cmdline").read_bytes() for child in children}
        except (FileNotFoundError, ProcessLookupError):  # one of them has ended meanwhile
            continue
        found += [child for child, name in names.items() if b"spawn_main" in name or name.startswith(b"ray::_do")]
        ancestors += names
    return found


def ended(process: "subprocess.Popen[str]") -> bool:
    """Whether it has, and that it has ended well."""
    if process.poll():
        raise RuntimeError(f"expected the sweep to end well, got {process.returncode}: {process.communicate()[0]}")
    return process.returncode == 0


def killed(config: Kills, moments: random.Random, span: float, out: Path, left: list[str]) -> Iterator[str]:
    """One sweep to its end; yields whom it has killed, which it takes off what is ``left``."""
    process = sweep(config, out)
    try:
        while left:
            moment = time.monotonic() + moments.uniform(0, span)
            while time.monotonic() < moment or (left[0] == "a worker" and not workers_of(process)):
                if ended(process):
                    return
                time.sleep(0.01)
            victim = moments.choice(workers_of(process)) if left[0] == "a worker" else process.pid
            try:
                os.kill(victim, signal.SIGKILL)
            except ProcessLookupError:  # it ended by itself
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
    """How many are measured by now."""
    try:
        return load(str(out)).n_unique(["run", "task"])
    except FileNotFoundError:
        return 0


def main() -> None:
    config = tyro.cli(Kills)
    moments = random.Random(config.seed)
    with tempfile.TemporaryDirectory() as scratch:
        began = time.monotonic()
        undisturbed = sweep(config, Path(scratch, "undisturbed"))
        while not ended(undisturbed):
            time.sleep(0.05)
        span = time.monotonic() - began
        expected, total = load(f"{scratch}/undisturbed"), tasks_in(Path(scratch, "undisturbed"))
        print(f"undisturbed: {span:.1f} s, {expected.height} values", flush=True)
        left = [("a worker", "the sweep")[kill % 2] for kill in range(config.kills)]
        sweeps, kills = 0, Counter[str]()
        while left or not sweeps:
            out = Path(scratch, str(sweeps))
            for victim in killed(config, moments, span, out, left):
                kills[victim] += 1
                print(f"killed {victim} after {tasks_in(out)} of {total} tasks", flush=True)
            assert_frame_equal(load(str(out)), expected, check_exact=True)
            sweeps += 1
        told = " and ".join(f"{victim} {count} times" for victim, count in kills.items())
        print(f"killed {told} in {sweeps} sweeps: all {expected.height} values of each are the same to the bit")


if __name__ == "__main__":
    main()
