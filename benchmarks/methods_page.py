"""Write docs/methods.md from the raw results beside it.

python benchmarks/overhead.py --methods all --rounds 14 --out results/overhead/methods-mlp.json
python benchmarks/overhead.py --methods all --rounds 5 --steps 5 --network conv --out results/overhead/methods-conv.json
python benchmarks/digits.py
python benchmarks/methods_page.py
"""

import json
import statistics
from pathlib import Path

import polars as pl
from overhead import mlp

from supple.lab.methods import METHODS
from supple.runs.stats import last_tasks

ACTS_ON = {
    "layer-norm": "network",
    "crelu": "network",
    "spectral-normalization": "network",
    "normalize-and-project": "network and parameters",
    "none": "",
    "decoupled-spectral": "parameters",
    "shrink-and-perturb": "parameters",
    "weight-clipping": "parameters",
    "hare-and-tortoise": "parameters",
    "redo": "units, by activations",
    "continual-backprop": "units, by activations",
    "self-normalized-resets": "units, by activations",
    "network-reset": "parameters",
}  # all others: gradients

TEXT = """# The methods

Every method of the table `METHODS`: by name in `supple run` and `supple demo`, and as a class in two lines of your own.
Written by `python benchmarks/methods_page.py` from [results](../results), which that file says how to make.

- *state*: bytes for each parameter of the 4x256 MLP, in float32, beside the parameters and the optimizer's own.
- *step*: a whole training step with the method over the same step without, paired and alternated in one run, median;
  on the 4x256 MLP with 784 inputs and on a small convolutional network with 3x32x32 inputs, both at batch 512 with Adam
  in float32 on one CPU thread. Differences of a few percent are noise: the raw files have every round. ReDo, network
  reset and hare and tortoise act once in 1,000 steps or more: their rare step is hardly in it.
- *digits*: training accuracy, mean of the last 5 of 30 tasks of random labels on 1,797 digits, mean ± standard error
  over {seeds} seeds; a **quick** result of one small problem. Strengths were chosen from {grid} on another seed
  (100), the best of which is shown; where the dial means something else, from the values in `benchmarks/digits.py`.
  A dash: not measured yet.

| method | what it does | acts on | state | step, MLP | step, conv | strength | digits |
|---|---|---|---|---|---|---|---|
{rows}

`none` is the yardstick. LayerNorm, CReLU and spectral normalization change the network and have no dial. Parseval and
Wasserstein cost what their formulas ask for: two products of matrices for each matrix, a sort of every tensor. UPGD and
shrink and perturb draw as many random numbers as there are parameters at each step.
"""


def cost(network: str) -> dict[str, str]:
    """Median ratio to none, by method; nothing where it has not been measured."""
    path = Path(f"results/overhead/methods-{network}.json")
    seconds = json.loads(path.read_text())["seconds"] if path.exists() else {}
    return {
        name: f"{statistics.median(a / b for a, b in zip(times, seconds['none'], strict=True)):.2f}"
        for name, times in seconds.items()
    }


def main() -> None:
    rows = pl.read_parquet("results/digits/rows.parquet")
    digits = {row["method"]: row for row in last_tasks(rows, "train_accuracy").to_dicts()}
    costs = cost("mlp"), cost("conv")
    lines = []
    for name, method in METHODS.items():
        network = mlp()
        size = sum(parameter.numel() for parameter in network.parameters())
        state = method.mitigator(network, method.strength).state_dict()
        kept = sum(tensor.nbytes for entry in state.values() for tensor in entry.values()) / size
        found = digits.get(name)
        lines.append(
            [
                f"`{name}`",
                method.summary,
                ACTS_ON.get(name, "gradients"),
                f"{kept:.2f}" if kept else "0",
                *(each.get(name, "-") for each in costs),
                f"{found['strength']:g}" if found and found["strength"] else "-",
                f"{found['mean']:.3f} ± {found['error']:.3f}" if found else "-",
            ]
        )
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    text = TEXT.format(rows=table, seeds=max(row["seeds"] for row in digits.values()), grid="1e-2, 1e-3 and 1e-4")
    Path("docs/methods.md").write_text(text)


if __name__ == "__main__":
    main()
