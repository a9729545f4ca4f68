"""Every method that the library exports, with options by which each acts within few steps, and networks to train."""

import inspect
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn

from supple import Population, mitigators
from supple.mitigators import Mitigator
from support.zoo import spread

EXPORTED = {name: getattr(mitigators, name) for name in mitigators.__all__}
CLASSES = {
    name: value
    for name, value in EXPORTED.items()
    if inspect.isclass(value) and issubclass(value, Mitigator) and value is not Mitigator
}
OPTIONS = {  # so that each acts within few steps
    "ContinualBackprop": {"strength": 0.1, "maturity": 2},
    "HareAndTortoise": {"every": 4, "decay": 0.9, "strength": 0.9},
    "NetworkReset": {"every": 4, "strength": 0.5},
    "ParsevalRegularizer": {"strength": 1e-2},
    "ReDo": {"every": 4, "strength": 0.9},
    "SelfNormalizedResets": {"every": 1, "patience": 1, "quiet": 0.9, "strength": 0.2, "refresh": 3},
    "StreamingEWC": {"strength": 1.0, "decay": 0.9},
    "UPGD": {"strength": 0.9, "weight_decay": 0.01},
    "WeightClipping": {"strength": 2.0},
}
CASES = {name: (method, OPTIONS.get(name, {})) for name, method in CLASSES.items()} | {
    "ContinualBackprop-adaptable": (
        CLASSES["ContinualBackprop"],
        {**OPTIONS["ContinualBackprop"], "utility": "adaptable contribution"},
    ),
    "SpectralRegularizer-decoupled": (CLASSES["SpectralRegularizer"], {"decoupled": True}),
    "SpectralRegularizer-initial": (CLASSES["SpectralRegularizer"], {"target": "initial"}),
    "SpectralRegularizer-initial-decoupled": (
        CLASSES["SpectralRegularizer"],
        {"target": "initial", "decoupled": True},
    ),
    "ParsevalRegularizer-decoupled": (CLASSES["ParsevalRegularizer"], {"decoupled": True}),
    "ShrinkAndPerturb-step-noise": (CLASSES["ShrinkAndPerturb"], {"variant": "step-noise"}),
    "WassersteinRegularizer-mean": (CLASSES["WassersteinRegularizer"], {"reduction": "mean"}),
}
SEED = 10


def build(case: str, network: nn.Module, **options: object) -> Mitigator:
    method, usual = CASES[case]
    return method(network, **{"strength": 0.1, **usual, **options})


def strength_of(case: str) -> float:
    return CASES[case][1].get("strength", 0.1)


def where_taken(case: str, **options: object) -> dict[str, object]:
    """Those of the options that this method has."""
    return {name: options[name] for name in options.keys() & inspect.signature(CASES[case][0]).parameters.keys()}


every_case = pytest.mark.parametrize("case", CASES)
every_case_that_acts_in_steps = pytest.mark.parametrize(
    "case", [case for case, (method, _) in CASES.items() if not method.acts_at_task_start]
)


def tensors(method: Mitigator) -> list[Tensor]:
    """All that it remembers."""
    return [tensor for entry in method.state_dict().values() for tensor in entry.values()]


class Block(nn.Module):
    """A pre-norm transformer block between an embedding and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 8)
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        h = self.norm1(x)
        x = x + self.attention(h, h, h)[0]
        x = x + self.mlp(self.norm2(x))
        return self.head(x.mean(1))


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 3)
    )


def conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6, 3),
    )


NETWORKS = {"mlp": (mlp, (4,)), "conv": (conv, (2, 6, 6)), "transformer": (Block, (5, 4))}
every_network = pytest.mark.parametrize("kind", NETWORKS)


def make_network(kind: str, dtype: torch.dtype = torch.float32, seed: int = 0, device: str = "cpu") -> nn.Module:
    """The same values on every device."""
    torch.manual_seed(seed)
    return spread(NETWORKS[kind][0]()).to(device, dtype)


def batch(kind: str, step: int, network: nn.Module) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(step)
    x = torch.randn(12, *NETWORKS[kind][1], generator=random, dtype=torch.float64)
    y = 3 * torch.randn(12, 3, generator=random, dtype=torch.float64)
    if isinstance(network, Population):
        x, y = (tensor.expand(len(network), *tensor.shape) for tensor in (x, y))
    parameter = next(network.parameters())
    return x.to(parameter), y.to(parameter)


def backward(kind: str, step: int, network: nn.Module, optimizer: torch.optim.Optimizer, scale: float = 1.0) -> None:
    x, y = batch(kind, step, network)
    optimizer.zero_grad()
    loss = (network(x) - y).square().mean((-2, -1)).sum()
    (scale * loss).backward()


def train(kind: str, network: nn.Module, optimizer: torch.optim.Optimizer, steps: Iterable[int] = range(10)) -> None:
    """By default enough steps for every method to act twice with its options above."""
    for step in steps:
        backward(kind, step, network, optimizer)
        optimizer.step()


def sgd(network: nn.Module, **options: object) -> torch.optim.Optimizer:
    return torch.optim.SGD(network.parameters(), **{"lr": 0.02, "momentum": 0.9, **options})


def adamw(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(network.parameters(), lr=0.01)


def same(first: nn.Module, second: nn.Module) -> bool:
    """Whether all parameters and buffers are bit-for-bit identical."""
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def same_state(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
