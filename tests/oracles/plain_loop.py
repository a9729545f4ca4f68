"""A training loop written out by hand. Other people's loops must give bit-for-bit identical steps."""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from supple import Mitigator, PlasticityMonitor, SpectralRegularizer

STRENGTH = 0.1  # so large that a pull left out, or there twice, shows
Loss = Callable[[nn.Module, Tensor], Tensor]


def mlp() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3))


def mean_square(network: nn.Module, x: Tensor) -> Tensor:
    return network(x).square().mean()


def batches(steps: int, size: int = 8) -> Tensor:
    return torch.randn(steps, size, 4, generator=torch.Generator().manual_seed(2))


def spectral(network: nn.Module, **options: object) -> Mitigator:
    return SpectralRegularizer(network, **{"strength": STRENGTH, **options})


def adam(network: nn.Module, **options: object) -> torch.optim.Optimizer:
    return torch.optim.Adam((p for p in network.parameters() if p.requires_grad), **{"lr": 0.01, **options})


def train_by_hand(
    network: nn.Module,
    method: Mitigator | None,
    optimizer: torch.optim.Optimizer,
    inputs: Sequence[Tensor],
    loss_of: Loss = mean_square,
    *,
    accumulate: int = 1,
    clip: float | None = None,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
) -> None:
    """Once a step: the gradients of ``accumulate`` batches, clipped, then the method's, then the step."""
    for start in range(0, len(inputs), accumulate):
        optimizer.zero_grad()
        for x in inputs[start : start + accumulate]:
            (loss_of(network, x) / accumulate).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(network.parameters(), clip)
        if method is not None:
            method.before_step()
        optimizer.step()
        if method is not None:
            method.after_step(optimizer)
        if scheduler is not None:
            scheduler.step()


def monitor(network: nn.Module, every: int = 1, probe: Tensor | None = None) -> PlasticityMonitor:
    """A monitor of three values: one needs the initial weights, one the previous activations, one only the weights."""
    names = ["distance_from_initialization", "representation_change", "spectral_norm"]
    x = batches(1)[0] if probe is None else probe
    return PlasticityMonitor(network, (x, None), every=every, diagnostics=names)


def measured_by_hand(
    network: nn.Module, method: Mitigator, inputs: Sequence[Tensor], accumulate: int = 1, every: int = 1
) -> list[dict[str, float]]:
    """The measurements of a loop that trains with Adam and calls the monitor itself."""
    watch, optimizer = monitor(network, every), adam(network)
    measurements = []
    for start in range(0, len(inputs), accumulate):
        train_by_hand(network, method, optimizer, inputs[start : start + accumulate], accumulate=accumulate)
        measurements.append(watch.step())
    return [measurement for measurement in measurements if measurement is not None]


def copies(network: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Two more of the same: one for the loop by hand, one for the loop by hand without a method."""
    return copy.deepcopy(network), copy.deepcopy(network)


def assert_same(network: nn.Module, expected: nn.Module, **tolerance: float) -> None:
    for (name, a), b in zip(network.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(
            a.cpu(), b, **{"rtol": 0.0, "atol": 0.0, **tolerance}, msg=lambda m, name=name: f"{name}: {m}"
        )


def assert_differs(network: nn.Module, other: nn.Module) -> None:
    """In every trained parameter: the comparison would notice a missing pull."""
    for (name, a), b in zip(network.named_parameters(), other.parameters(), strict=True):
        assert not a.requires_grad or not torch.equal(a.cpu(), b), name
