"""Write docs/methods.md from the raw results, which these commands make.

python benchmarks/overhead.py --methods all --rounds 100 --out results/overhead/methods-mlp.json
python benchmarks/overhead.py --methods all --rounds 15 --network conv --out results/overhead/methods-conv.json
python benchmarks/digits.py
python benchmarks/rotations.py
python benchmarks/methods_page.py       # at once
"""

import json
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import tyro
from measuring import ratios
from networks import NETWORKS
from rotations import summary

from supple.runs.stats import last_tasks
from supple.training.methods import METHODS, title_of

RARE = ("redo", "continual-backprop", "self-normalized-resets", "network-reset", "hare-and-tortoise")
"""Methods that act only every many steps: their cost is the ratio of all steps together, not of the median step."""

TEXT = """# The methods

Use a method by its name in `supple run --method`, or as a class or layer in your own loop ([API](api.md)). `supple list
methods` lists their options; in Python, `help(supple.ContinualBackprop)`, for example, explains them.

| method | digits | strength | step, MLP | step, conv | state | what it does |
|---|---|---|---|---|---|---|
{rows}

- *digits*: training accuracy on random labels of 1,797 digits, mean of the last 5 of 30 tasks, ± standard error over
  {seeds} seeds. A **quick** result on one small problem: not a ranking.
- *strength*: the best on another seed of those in `results/digits/tuning.parquet`: 1e-2, 1e-3 and 1e-4, or others where
  a strength means something else. The best is the smallest or the largest tried for:
  {at_an_end}.
  Not tuned: FIRE, hare and tortoise, network reset, normalize and project, UPGD (noise as in its authors' code, without
  their doubled step size), and the perturbation of shrink and perturb, which Kumar et al. tune. FIRE's authors give
  each task a new optimizer; then it has 0.927.
  [Norm control](norm-control.md) tries finer and wider grids, so it has other numbers.
- *step*: time of a training step divided by that without a method; on the 4x256 MLP with 784 inputs, and on a small
  convolutional network with 3x32x32 inputs. Both at batch 512 with Adam in float32, in processor seconds of one thread;
  steps with and without the method take turns, and the median over rounds is shown. Methods that act rarely have the
  ratio of total times, over {steps:,} steps on the MLP and {conv_steps:,} on the other network (too few for those that
  act every 1,000). Differences of a few percent are noise.
- *state*: bytes that the method keeps for each parameter of the MLP, in float32.
- A dash: not measured, or not applicable. LayerNorm, CReLU, Fourier features and spectral normalization change the
  network and have no strength; their step is that of the changed network. FIRE acts between tasks, so its steps cost
  nothing extra.

`python benchmarks/methods_page.py` writes this page from `results`; that file says how to make them.

## Unavoidable costs

- *Parseval* needs two matrix products per weight and step, 4 n² m multiplications and additions for n rows and m ≥ n
  columns. On this MLP that is 407 million, 0.40 of the step's own 1,023 million (0.30 if only half of the first
  product, which is symmetric, were computed). The share falls as the batch grows: 0.10 at 2,048.
- *UPGD* draws a normal number for each parameter in each step. torch's generator alone makes the step {normal} times as
  long; what remains are nine passes over tensors of the parameters' size.
- *Shrink and perturb* draws a uniform number for each. It uses 16 random bits each, not 32.
- *Wasserstein* sorts every tensor.

## Does spectral regularization favour rotations?

No. It holds the largest singular value down and leaves the rest to the data. In a rotation, scaled or not, all are
equal; Parseval regularization pulls them to one value (√2, as its authors chose). Singular values of the hidden layers
of 256 x 256 in the networks of the table above, after 30 tasks, mean over layers and seeds:

| | largest | median | smallest | within 10 % of the median | accuracy |
|---|---|---|---|---|---|
{spectra}

On this one small problem, holding all of them did better than holding the largest.

![Singular values of each hidden layer](rotations.png)
"""


@dataclass(frozen=True, kw_only=True)
class MethodsPage:
    """Write docs/methods.md from the raw results."""

    out: Path = Path("docs/methods.md")
    """The page."""

    def __call__(self) -> None:
        rows = pl.read_parquet("results/digits/rows.parquet")
        digits = {row["method"]: row for row in last_tasks(rows, "train_accuracy").to_dicts()}
        mlp_cost, mlp_steps = cost("mlp")
        conv_cost, conv_steps = cost("conv")
        text = TEXT.format(
            rows="\n".join(row_of(name, (mlp_cost, conv_cost), digits) for name in METHODS),
            seeds=max(row["seeds"] for row in digits.values()),
            steps=mlp_steps,
            conv_steps=conv_steps,
            at_an_end=", ".join(at_an_end(pl.read_parquet("results/digits/tuning.parquet"))),
            normal=f"{mlp_cost['a normal number a parameter']:.2f}",
            spectra=spectra(digits),
        )
        self.out.write_text(text)


def cost(network: str) -> tuple[dict[str, float], int]:
    """Every method's step time relative to no method, and the number of steps measured."""
    measured = json.loads(Path(f"results/overhead/methods-{network}.json").read_text())
    seconds, config = measured["seconds"], measured["config"]
    costs = {
        name: sum(times) / sum(seconds["none"]) if name in RARE else statistics.median(ratios(times, seconds["none"]))
        for name, times in seconds.items()
    }
    return costs, config["rounds"] * config["steps"]


def at_an_end(tuned: pl.DataFrame) -> Iterator[str]:
    """The methods, by title, whose best strength is the smallest or the largest that was tried."""
    for (method,), tried in tuned.sort("strength").group_by("method", maintain_order=True):
        strengths = tried["strength"].to_list()
        best = tried.sort("mean")["strength"][-1]
        if len(strengths) > 1 and best in (strengths[0], strengths[-1]):
            yield title_of(str(method))


def row_of(name: str, costs: Iterable[Mapping[str, float]], digits: Mapping[str, Mapping[str, Any]]) -> str:
    """The table row of a method."""
    method, network = METHODS[name], NETWORKS["mlp"][0]()
    size = sum(parameter.numel() for parameter in network.parameters())
    state = method.on(network, method.strength).state_dict()
    kept = sum(tensor.nbytes for entry in state.values() for tensor in entry.values()) / size
    on_digits = digits.get(name)
    columns = [
        f"`{name}`",
        f"{on_digits['mean']:.3f} ± {on_digits['error']:.3f}" if on_digits else "-",
        f"{on_digits['strength']:g}" if on_digits and on_digits["strength"] else "-",
        *(f"{cost[name]:.2f}" if name in cost else "-" for cost in costs),
        f"{kept:.2f}" if kept else "0",
        method.summary,
    ]
    return f"| {' | '.join(columns)} |"


def spectra(digits: Mapping[str, Mapping[str, Any]]) -> str:
    """One table row per method: means over the square layers."""
    rows = summary(pl.read_parquet("results/rotations/rows.parquet")).filter(pl.col("layer") > 1)
    means = rows.group_by("method", maintain_order=True).agg(pl.all().exclude("layer").mean())
    lines = []
    for row in means.to_dicts():
        on_digits = digits.get(row["method"])
        lines.append(
            f"| {row['method']} | {row['largest']:.2f} | {row['middle']:.2f} | {row['smallest']:.3f} | "
            f"{100 * row['near_middle']:.0f} % | {format(on_digits['mean'], '.3f') if on_digits else '-'} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    tyro.cli(MethodsPage)()
