"""Wasserstein regularization: pulls the distribution of each tensor's entries towards its initial one."""

from typing import Literal

import torch
from torch import Tensor, nn

from supple.mitigators.kernels import Strength
from supple.mitigators.squared_distance import SquaredDistance
from supple.mitigators.states import State
from supple.network.population import Population
from supple.network.roles import Overrides


class WassersteinRegularizer(SquaredDistance):
    r"""Keep the distribution of each tensor's entries near the initial one; entries may exchange their values freely.

    .. math:: R(\theta) = \sum_p \lVert \mathrm{sort}(p) - \mathrm{sort}(p^{(0)}) \rVert^2

    which is the squared 2-Wasserstein distance of the two empirical distributions, times the number of entries. A step
    must sort every tensor; there is no cheaper closed form. It also moves an embedding's ``padding_idx`` row: leave
    that embedding out with ``roles``.

    Args:
        network: a module or a :class:`Population`.
        strength: λ.
        reduction: ``"sum"`` over the entries of a tensor, or ``"mean"``; the sources differ.
        roles: None for a parameter leaves it out; the role itself makes no difference here.

    Raises:
        ValueError: for another reduction.

    Source: Lewandowski et al., *Directions of Curvature as an Explanation for Loss of Plasticity*, 2023.
    """

    works_on_shards = False

    def __init__(
        self,
        network: nn.Module | Population,
        strength: Strength = 1e-4,
        *,
        reduction: Literal["sum", "mean"] = "sum",
        roles: Overrides | None = None,
    ) -> None:
        if reduction not in ("sum", "mean"):
            raise ValueError(f"expected 'sum' or 'mean' as reduction, got {reduction!r}: choose one")
        super().__init__(network, strength, roles=roles)
        self.reduction = reduction
        with torch.no_grad():
            self.state = {
                name: {"sorted": self.roles[name].vector(parameter).sort(-1).values}
                for name, parameter in self.parameters.items()
            }

    def _deviation(self, name: str, parameter: Tensor, state: State) -> Tensor:
        values = self.roles[name].vector(parameter)
        order = sorting_order(values.detach())
        distance = values.gather(-1, order) - state[name]["sorted"].to(values.dtype)
        return torch.zeros_like(values).scatter(-1, order, distance).view_as(parameter)

    def _weight(self, name: str) -> float:
        return 1.0 if self.reduction == "sum" else 1.0 / self.state[name]["sorted"].shape[-1]


def sorting_order(values: Tensor) -> Tensor:
    """The indices that sort each ``(..., n)``.

    On a CPU torch sorts integers four times as fast as floating-point numbers. The bits of floats with the same sign,
    read as integers, are in the order of their magnitudes.
    """
    if values.device.type != "cpu":
        return values.argsort(-1)
    bits = values.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()])
    keys = torch.where(bits < 0, bits ^ torch.iinfo(bits.dtype).max, bits)  # reverses the order below zero
    return torch.stack([row.argsort() for row in keys.view(-1, keys.shape[-1])]).view(values.shape)
