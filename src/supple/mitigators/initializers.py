"""What draws the incoming weights of new units: each layer's own initialization."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from supple.mitigators.fresh import draws_uniformly, reset_of
from supple.network.population import Population, copy_of, module_of, seeded_globally
from supple.network.units import UnitGroup

Initializer = Callable[[Tensor, torch.Generator], object]
"""Fills incoming weights ``(k, *shape of one unit's weights)`` in place."""


def initializers_of(network: nn.Module | Population, groups: Sequence[UnitGroup]) -> dict[str, Initializer]:
    """For each group, what draws incoming weights as its layer does: copies of layers that do so in a way of their own.

    Torch's own layers draw uniformly in ± 1/√fan-in, which needs no copy.
    """
    module = module_of(network)
    found: dict[str, Initializer] = {group.name: partial(_draw_uniformly, group.fan_in**-0.5) for group in groups}
    own = [name for name in found if reset_of(layer := module.get_submodule(name)) and not draws_uniformly(layer)]
    if own:
        one = network.member(0) if isinstance(network, Population) else network
        layers = copy_of(nn.ModuleList(one.get_submodule(name) for name in own)).cpu()
        found |= {name: partial(_draw_as, layer) for name, layer in zip(own, layers, strict=True) if _writes_all(layer)}
    return found


@torch.no_grad()
def _writes_all(layer: nn.Module) -> bool:
    """Whether its ``reset_parameters()`` draws the whole weight; it may do nothing, where a network draws all."""
    weight = layer.get_parameter("weight").fill_(torch.nan)
    _draw_as(layer, weight[:0], torch.Generator())
    return not bool(weight.isnan().any())


@torch.no_grad()
def _draw_as(layer: nn.Module, rows: Tensor, random: torch.Generator) -> None:
    """Fill incoming weights of units ``(k, …)`` with the first ones of a new weight of the whole layer."""
    reset = reset_of(layer)
    assert reset is not None, "only such layers are copied"
    with seeded_globally(int(torch.randint(2**62, (), generator=random, device="cpu"))):
        reset()
    rows.copy_(layer.get_parameter("weight")[: len(rows)])


def _draw_uniformly(bound: float, rows: Tensor, random: torch.Generator) -> None:
    rows.uniform_(-bound, bound, generator=random)
