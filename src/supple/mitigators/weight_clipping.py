"""Weight clipping (Elsayed et al., 2024): every weight back into the range that initialisation drew it from."""

import math
from collections.abc import Mapping

from torch import Tensor, nn

from supple.mitigators.base import Mitigator, State, Strength, Tensors, Update, per_member
from supple.population import Population
from supple.roles import Kind, Role


class WeightClipping(Mitigator):
    r"""Clamp weights and biases to :math:`\pm \zeta / \sqrt{\text{fan-in}}` after each step.

    Args:
        network: a module or a :class:`Population`.
        strength: 1/ζ: the larger, the tighter, and 0 clips nothing. The source tries ζ from 1 to 5; torch's default
            initialisation of linear layers and convolutions lies within ζ = 1, that of embeddings and attention does
            not.
        roles: parameter name to role. Matrices are clipped, and the vectors of a module that also owns a matrix, by its
            fan-in; all else is left alone.

    Raises:
        ValueError: for a network without a weight matrix.

    Source: Elsayed, Lan, Lyle & Mahmood, *Weight Clipping for Deep Continual and Reinforcement Learning*, 2024.

    >>> import torch
    >>> network = nn.Linear(4, 1)
    >>> optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    >>> _ = nn.init.constant_(network.weight, 9.0)
    >>> WeightClipping(network, strength=0.5).after_step(optimizer)
    >>> network.weight
    Parameter containing:
    tensor([[1., 1., 1., 1.]], requires_grad=True)
    """

    works_on_pieces = True

    def __init__(
        self,
        network: nn.Module | Population,
        strength: Strength = 0.5,
        *,
        roles: Mapping[str, Kind | Role | None] | None = None,
    ) -> None:
        super().__init__(network, strength, roles=roles)
        self.fan_in = {name: self.roles[name].sizes[2] for name in self.parameters if self.roles[name].kind == "matrix"}
        owners = {_owner(name): fan_in for name, fan_in in self.fan_in.items()}
        for name in self.parameters:
            if self.roles[name].kind == "vector" and _owner(name) in owners:
                self.fan_in[name] = owners[_owner(name)]
        self._act_on(self.fan_in, "weight matrices")

    def change_parameters(self, parameters: Tensors, state: State, strength: Strength, update: Update) -> None:
        for name, parameter in parameters.items():
            inverse = per_member(strength, parameter.ndim) * math.sqrt(self.fan_in[name])
            if isinstance(inverse, Tensor):
                bound = inverse.reciprocal().to(parameter.dtype)
                parameter.clamp_(-bound, bound)
            elif inverse:
                parameter.clamp_(-1 / inverse, 1 / inverse)


def _owner(name: str) -> str:
    """The module that a parameter belongs to, also where it is what a parametrization computes the module's from."""
    return f".{name}".rpartition(".")[0].partition(".parametrizations.")[0]
