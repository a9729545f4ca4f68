"""Weight clipping (Elsayed et al., 2024): clamps every weight to about the range of its initialization."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from supple.kernels.power_iteration import TINY
from supple.mitigators.base import Mitigator
from supple.mitigators.forecast import LARGE_CHANGE, Change, looks_fresh, warn
from supple.mitigators.kernels import Strength, Update, per_member
from supple.mitigators.states import State, Tensors
from supple.network.find_roles import owner_of
from supple.network.population import Population
from supple.network.roles import Overrides


class WeightClipping(Mitigator):
    r"""Clamp weights and biases to :math:`\pm \zeta / \sqrt{\text{fan-in}}` after each step.

    Args:
        network: a module or a :class:`Population`.
        strength: 1/ζ: a larger value clips more tightly, and 0 clips nothing. 0.5 is ζ = 2; the source tries ζ from 1
            to 5, and its code has 1 by default. torch's default initialization of linear layers and convolutions lies
            within ζ = 1, that of embeddings, attention and transposed convolutions does not.
        roles: parameter name to role. Matrices are clipped, and so are the vectors of a module that owns a matrix, with
            that matrix's fan-in; other parameters are not changed (the authors' code also clips the gains of norms).

    Raises:
        ValueError: for a network without a weight matrix.

    Source: Elsayed, Lan, Lyle & Mahmood, *Weight Clipping for Deep Continual and Reinforcement Learning*, 2024.

    >>> network = nn.Linear(4, 1)
    >>> optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    >>> _ = nn.init.constant_(network.weight, 9.0)
    >>> network.weight.grad = torch.zeros_like(network.weight)
    >>> WeightClipping(network, strength=0.5).after_step(optimizer)
    >>> network.weight
    Parameter containing:
    tensor([[1., 1., 1., 1.]], requires_grad=True)
    """

    works_on_shards = True
    goes_by_role = True
    makes_small_changes = False

    def __init__(
        self,
        network: nn.Module | Population,
        strength: Strength = 0.5,
        *,
        roles: Overrides | None = None,
    ) -> None:
        super().__init__(network, strength, roles=roles)
        self.fan_in = {name: self.roles[name].sizes[2] for name in self._matrices}
        owners = {owner_of(name): fan_in for name, fan_in in self.fan_in.items()}
        for name in self.parameters:
            if self.roles[name].kind == "vector" and owner_of(name) in owners:
                self.fan_in[name] = owners[owner_of(name)]
        self._act_on(self.fan_in, "weight matrices")

    @torch.no_grad()
    def _warn_of_changes(self, optimizers: Sequence[Optimizer], parameters: Tensors) -> bool:
        before = {name: p.detach() for name, p in parameters.items() if self.roles[name].kind == "matrix"}
        changes = []
        for name, matrix in self._local_shards(before).items():
            clipped = matrix.clone()
            self.change_parameters({name: clipped}, {}, self.strength, Update({}, {}))
            share = ((clipped - matrix).norm() / matrix.norm().clamp_min(TINY)).item()
            if share >= LARGE_CHANGE and name not in self._pieces:
                norm = matrix.norm().item() / math.sqrt(self.roles[name].sizes[0] * math.prod(self._members))
                sigma = self.roles[name].spectral_norms(matrix).amax().item()
                changes.append(Change(name, sigma, share, looks_fresh(sigma, norm, *self.roles[name].sizes[1:])))
        return warn(
            type(self).__name__,
            changes,
            "Weights are clamped to about the range of torch's initialization: for a trained network, use a smaller "
            "strength, or leave these parameters out with roles={name: None}.",
        )

    def change_parameters(self, parameters: Tensors, state: State, strength: Strength, update: Update) -> None:
        for name, parameter in parameters.items():
            inverse = per_member(strength, parameter.ndim) * math.sqrt(self.fan_in[name])
            if isinstance(inverse, Tensor):
                bound = inverse.reciprocal().to(parameter.dtype)
                parameter.clamp_(-bound, bound)
            elif inverse:
                parameter.clamp_(-1 / inverse, 1 / inverse)
