"""Whether a change made supple slower: a minute, in every check of a change.

    python benchmarks/guard.py

Ratios of processor time alone, each between two things that take turns, with margins wide enough for a busy machine;
what is really reached is in docs/performance.md.
"""

import statistics
import sys

import torch
from overhead import Overhead, variants
from performance import _eager, _stepping, paired, ratios, times

from supple.lab.run import Run

MOST = {"spectral": 1.35, "l2-init": 1.3, "redo": 1.3}
"""A step of the 4x256 MLP at batch 512 with a method, over the step without."""
LEAST = 1.5
"""How many times faster a member of ten small networks is trained than by a plain eager loop."""


def main() -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    steps = variants(Overhead(methods=tuple(MOST)))
    seconds = paired({name: times(10, steps[name]) for name in ("none", *MOST)}, 10)
    costs = {name: statistics.median(seconds[name]) / statistics.median(seconds["none"]) for name in MOST}
    slow = [
        f"a step with {name} takes {cost:.2f} times one without, expected at most {MOST[name]}"
        for name, cost in costs.items()
        if cost > MOST[name]
    ]
    ten = Run.of("permuted-mnist-kumar", "l2-init", range(10), scale="paper", diagnostics=())
    seconds = paired({"eager": _eager("l2-init"), "population": _stepping(ten, 100, compiled=True)}, 5)
    gain = 10 * ratios(seconds, "eager", "population")["ratio"]
    if gain < LEAST:
        slow.append(f"ten networks as a population gain {gain:.2f} times over an eager loop, expected at least {LEAST}")
    costs_told = ", ".join(f"{name} {cost:.2f}" for name, cost in costs.items())
    print(f"over a step without: {costs_told}; a population of ten: {gain:.2f} times an eager loop")
    if slow:
        sys.exit("slower than before: " + "; ".join(slow))


if __name__ == "__main__":
    main()
