"""Parseval regularization (Chung et al., 2024): pulls every singular value of the hidden weights towards one."""

from collections.abc import Mapping

from torch import Tensor, nn

from supple.mitigators.base import Mitigator
from supple.mitigators.kernels import Strength, per_member
from supple.mitigators.states import State, Tensors
from supple.network.find_roles import Kind, Role
from supple.network.population import Population


class ParsevalRegularizer(Mitigator):
    r"""Keep the hidden weights orthogonal: :math:`R(\theta) = \sum_W \lVert W W^\top - s I \rVert_F^2`.

    Every singular value of W is pulled to √s; :class:`SpectralRegularizer` pulls only the largest one. The gradient is
    :math:`4 (W W^\top - s I) W`; if W has more rows than columns, it is computed from the smaller WᵀW. Each step costs
    two matrix products per matrix, as much as a forward pass of twice as many examples as W has rows.

    Args:
        network: a module or a :class:`Population`.
        strength: λ. 1e-3 is the authors' choice for their control tasks.
        scale: s, by default 1; or the squared gain of the initialisation.
        roles: parameter name to role. All matrices are regularized except the last one, which is assumed to be the
            output layer; an override that says ``"matrix"`` includes it.

    Raises:
        ValueError: when there is no hidden matrix.

    Source: Chung, Cherif, Meger & Precup, *Parseval Regularization for Continual Reinforcement Learning*, 2024.

    >>> network = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> _ = nn.init.orthogonal_(network[0].weight)
    >>> bool(ParsevalRegularizer(network).penalty() < 1e-12)
    True
    """

    goes_by_role = True

    def __init__(
        self,
        network: nn.Module | Population,
        strength: Strength = 1e-3,
        *,
        scale: float = 1.0,
        roles: Mapping[str, Kind | Role | None] | None = None,
    ) -> None:
        super().__init__(network, strength, roles=roles)
        if not scale > 0:
            raise ValueError(f"expected a scale s above 0, got {scale}: 1 keeps singular values at one")
        self.scale = scale
        matrices = [name for name, role in self.roles.items() if role.kind == "matrix" and name in self.parameters]
        hidden = [name for name in matrices if name != matrices[-1] or (roles or {}).get(name) is not None]
        self._act_on(hidden, "a hidden weight matrix")

    def add_gradients(self, parameters: Tensors, gradients: Tensors, state: State, strength: Strength) -> None:
        for name, gradient in gradients.items():
            role = self.roles[name]
            weight = role.matrices(parameters[name])
            excess, wide = self._excess(weight)
            excess.mul_(per_member(4 * strength, excess.ndim))
            first, second = (excess, weight) if wide else (weight, excess)
            if weight is parameters[name] and weight.ndim <= 3:  # added by the product itself
                (gradient.addmm_ if weight.ndim == 2 else gradient.baddbmm_)(first, second)
            else:
                gradient.add_(role.fold(first @ second, gradient))

    def _penalty(self, parameters: Tensors) -> Tensor:
        total = super()._penalty(parameters)
        for name, parameter in parameters.items():
            weight = self.roles[name].matrices(parameter)
            rows, columns = weight.shape[-2:]
            terms = self._excess(weight)[0].square().sum((-2, -1)) + max(0, rows - columns) * self.scale**2
            total = total + terms.view(*self._members, -1).sum(-1)
        return total

    def _excess(self, weight: Tensor) -> tuple[Tensor, bool]:
        """W Wᵀ − s I, or Wᵀ W − s I if that is smaller, and which of the two."""
        wide = weight.shape[-2] <= weight.shape[-1]
        gram = weight @ weight.mT if wide else weight.mT @ weight
        gram.diagonal(dim1=-2, dim2=-1).sub_(self.scale)
        return gram, wide
