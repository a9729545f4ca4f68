"""Check that a change did not make supple slower; part of every check of a change.

    python benchmarks/guard.py       # half a minute

Variants take turns, and ratios of their minimum processor times are compared with limits: minimum times depend least on
other processes. The limits are wide enough for a busy machine; for accurate ratios see docs/performance.md.
"""

import sys
from dataclasses import dataclass

import tyro
from measuring import repeated, take_turns, use_threads
from overhead import Overhead, variants
from performance import eager_steps, steps_of

from supple.lab import datasets
from supple.lab.run import Run

MOST = {"spectral": 1.5, "l2-init": 1.4, "redo": 1.4}
"""Upper limit of the ratio of steps with and without a method (4x256 MLP, batch 512)."""
LEAST = 1.5
"""Lower limit of the speed of a member of ten small stacked networks, relative to a plain eager loop."""


@dataclass(frozen=True, kw_only=True)
class Guard:
    """Check that a change did not make supple slower."""

    def __call__(self) -> None:
        ten = Run.of("permuted-mnist-kumar", "l2-init", range(10), scale="paper", diagnostics=())
        try:
            datasets.load(ten.dataset)
        except OSError as error:
            sys.exit(f"guard: {error}")
        use_threads(1)
        steps = variants(Overhead(methods=tuple(MOST)))
        seconds = take_turns({name: repeated(5, steps[name]) for name in ("none", *MOST)}, 12)
        costs = {name: min(seconds[name]) / min(seconds["none"]) for name in MOST}
        slow = [
            f"a step with {name} takes {cost:.2f} times one without, expected at most {MOST[name]}"
            for name, cost in costs.items()
            if cost > MOST[name]
        ]
        seconds = take_turns({"eager": eager_steps("l2-init"), "population": steps_of(ten, 100, compiled=True)}, 4)
        gain = 10 * min(seconds["eager"]) / min(seconds["population"])
        if gain < LEAST:
            slow.append(
                f"ten networks as a population gain {gain:.2f} times over an eager loop, expected at least {LEAST}"
            )
        costs_told = ", ".join(f"{name} {cost:.2f}" for name, cost in costs.items())
        print(f"over a step without: {costs_told}; a population of ten: {gain:.2f} times an eager loop")
        if slow:
            sys.exit("slower than before: " + "; ".join(slow))


if __name__ == "__main__":
    tyro.cli(Guard)()
