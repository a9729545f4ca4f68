"""Normalize-and-project (Lyle et al., 2024): rescales each weight matrix to its initial norm after each step."""

import torch
from torch import Tensor, nn

from supple.kernels.power_iteration import TINY, working_dtype
from supple.mitigators.base import Mitigator
from supple.mitigators.kernels import Strength, Update, per_member
from supple.mitigators.states import State, Tensors
from supple.network.population import Population
from supple.network.roles import Overrides


class NormalizeAndProject(Mitigator):
    r"""Rescale each weight matrix to its initial Frobenius norm after each step.

    .. math:: W \gets W \lVert W^{(0)} \rVert / \lVert W \rVert

    It is meant for networks with a normalization layer before each non-linearity: their outputs do not depend on the
    weights' norms. In other networks it prevents the outputs from growing. A matrix that starts at zero, such as LoRA's
    second one, has no norm to keep and is not changed.

    Args:
        network: a module or a :class:`Population`.
        strength: the fraction of the way to the initial norm, from 0 (none) to 1 (all of it: the published method).
        roles: parameter name to role; only matrices are rescaled.

    Raises:
        ValueError: for a strength above 1, or a network without a weight matrix.

    Departure: the source also constrains the gains of the normalization layers; here they are free.

    Source: Lyle et al., *Normalization and Effective Learning Rates in Reinforcement Learning*, 2024.
    """

    largest_strength = 1.0
    goes_by_role = True

    def __init__(
        self,
        network: nn.Module | Population,
        strength: Strength = 1.0,
        *,
        roles: Overrides | None = None,
    ) -> None:
        super().__init__(network, strength, roles=roles)
        self._act_on(self._matrices, "weight matrices")
        with torch.no_grad():
            present = self._unpruned({**self.parameters})
            self.state = {name: {"norm": self._norm(name, parameter)} for name, parameter in present.items()}

    def change_parameters(self, parameters: Tensors, state: State, strength: Strength, update: Update) -> None:
        for name, parameter in parameters.items():
            back = state[name]["norm"] / self._norm(name, parameter).clamp_min(TINY)
            back = back.masked_fill(state[name]["norm"] == 0, 1.0)
            factor = 1 + per_member(strength, back.ndim) * (back - 1)
            self.roles[name].multiply_(parameter, factor)

    def _options(self) -> dict[str, float]:
        """A norm is one number whatever the matrix, so the sizes tell a state of another architecture."""
        return {f"entries of {name}": float(self.parameters[name].numel()) for name in self.state}

    def _norm(self, name: str, parameter: Tensor) -> Tensor:
        norm: Tensor = torch.linalg.matrix_norm(self.roles[name].matrices(parameter).to(working_dtype(parameter)))
        return norm
