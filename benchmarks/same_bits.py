"""Check that two checkouts give bit-for-bit identical results on this machine, for example after moving code.

    git worktree add ../before COMMIT
    python benchmarks/same_bits.py --before ../before       # minutes; --compiled: an hour

Each checkout runs its own copy of this program, which trains every method of the laboratory for some steps, as a
population of two, and agents for 200 updates, and prints digests of the results. Results differ between processors, so
digests are only compared, never stored.
"""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch.utils._pytree import tree_flatten_with_path

PROBLEM = "random-label-digits"
AGENT = {"steps": 150, "evaluate_every": 75, "episodes": 1, "hidden": (32, 32), "batch_size": 16}
AGENT |= {"random_steps": 50, "replay_ratio": 2, "capacity": 200}


@dataclass(frozen=True, kw_only=True)
class SameBits:
    """Check that two checkouts give bit-for-bit identical results on this machine."""

    before: Path | None = None
    """The other checkout; when left out, the digests of this one are printed as JSON."""
    methods: tuple[str, ...] = ()
    """Methods of the laboratory; all of them when left out."""
    agents: tuple[str, ...] = ("none", "spectral", "decoupled-spectral", "resets", "redo", "shrink-and-perturb")
    """Methods of the agents."""
    compiled: bool = False
    """Compile every training step; otherwise none is compiled."""

    def __call__(self) -> None:
        if self.before is None:
            print(json.dumps(digests(self)))
            return
        arguments = [*sys.argv[1:]]
        at = arguments.index("--before")
        del arguments[at : at + 2]
        here = Path(__file__).resolve().parents[1]
        before, now = of_checkout(self.before.resolve(), arguments), of_checkout(here, arguments)
        names = list(before | now)
        different = [name for name in names if before.get(name) != now.get(name)]
        table = Table("", "before", "now", "same")
        for name in names:
            table.add_row(name, before.get(name), now.get(name), "NO" if name in different else "yes")
        Console().print(table)
        if different:
            sys.exit(f"{len(different)} of {len(names)} differ: {', '.join(different)}")


def digest(*trees: Any) -> str:
    """A digest of all values in nested dictionaries and lists, with their keys: tensors as bytes, other values as text.

    The order of dictionary entries does not matter; None is skipped.
    """
    summary = hashlib.sha256()
    for path, leaf in sorted(tree_flatten_with_path(trees)[0], key=lambda entry: repr(entry[0])):
        if leaf is None:
            continue
        value = leaf.detach().cpu().numpy().tobytes() if isinstance(leaf, torch.Tensor) else repr(leaf).encode()
        summary.update(repr(path).encode() + value)
    return summary.hexdigest()[:16]


def of_method(method: str, compiled: bool) -> str:
    from supple.lab.run import Run
    from supple.lab.trainer import Trainer

    run = Run.of(PROBLEM, method, (0, 1), tasks=2, epochs=4)
    torch.manual_seed(0)
    trainer = Trainer(run, compiled=compiled)
    rows = [trainer.learn(task).rows() for task in range(run.tasks)]
    return digest(run.folder("runs").name, rows, trainer.state_dict())


def of_agent(method: str, compiled: bool) -> str:
    from supple.rl.run import Run
    from supple.rl.train import Training

    resets = {"every": 160} if method == "resets" else None
    run = Run.of("Pendulum-v1", method, (0, 1), resets=resets, **AGENT)
    torch.manual_seed(0)
    training, rows = Training(run, compiled=compiled), []
    for step in range(1, run.steps + 1):
        training.advance()
        if step % run.evaluate_every == 0:
            rows.append(training.measure().rows())
            training.reset_if_due()
    return digest(run.folder("runs").name, rows, training.agent.state_dict())


def digests(config: SameBits) -> dict[str, str]:
    from supple.training.methods import METHODS

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    trained = {f"laboratory, {name}": of_method(name, config.compiled) for name in config.methods or METHODS}
    return trained | {f"agent, {name}": of_agent(name, config.compiled) for name in config.agents}


def of_checkout(folder: Path, arguments: list[str]) -> dict[str, str]:
    program, path = folder / "benchmarks" / "same_bits.py", str(folder / "src")
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, program, *arguments], env=environment, stdout=subprocess.PIPE, check=True)
    printed: dict[str, str] = json.loads(done.stdout)
    return printed


if __name__ == "__main__":
    tyro.cli(SameBits)()
