"""Parseval regularization (Chung et al., 2024): pulls all singular values of the hidden weights together."""

import torch
from torch import Tensor, nn

from supple.mitigators.base import Mitigator
from supple.mitigators.kernels import Strength, Update, per_member
from supple.mitigators.states import State, Tensors
from supple.network.find_roles import find_roles, output_matrix
from supple.network.population import Population
from supple.network.roles import Overrides


class ParsevalRegularizer(Mitigator):
    r"""Keep the hidden weights orthogonal.

    .. math:: R(\theta) = \sum_W a^2 \lVert W W^\top - s I \rVert_F^2, \quad a = \min\left(1, \tfrac{64}{n}\right)
              \qquad \text{for } W \text{ with } n \text{ rows}

    Every singular value of W is pulled to √s; :class:`SpectralRegularizer` pulls only the largest one. The gradient is
    :math:`4 a^2 (W W^\top - s I) W`; if W has more rows than columns, it is computed from the smaller WᵀW. Each
    step costs two matrix products per matrix, as much as a forward pass of twice as many examples as W has rows.

    Args:
        network: a module or a :class:`Population`.
        strength: λ. The authors' presets for control use 1e-3 and 1e-4. Decoupled, its default is 1.
        scale: s, the squared gain of the initialization. 2 is the authors' default, for ReLU and orthogonal weights of
            gain √2; 1 keeps the length of a layer's inputs.
        decoupled: subtract step size times gradient from the weights after the optimizer's step, as AdamW does with
            weight decay. That is not in the source; AdamO (arXiv 2606.09762) does so with the same penalty. The
            gradient's factor is at most ½ / (s + ‖W Wᵀ − s I‖∞), so that no singular value crosses √s.
        roles: parameter name to role. All matrices are regularized except the last one, which is assumed to be the
            output layer; an override that says ``"matrix"`` includes it.

    Raises:
        ValueError: when there is no hidden matrix; when attached in the decoupled form, if the optimizer does not give
            its step size.

    The authors' networks have one width; here n is each layer's own. They tuned λ for 64 units, hence the factor a². In
    narrower layers a is 1: (64 / n)² would let weights diverge, since it is 4096 for a depthwise convolution's groups.

    Source: Chung, Cherif, Meger & Precup, *Parseval Regularization for Continual Reinforcement Learning*, 2024.

    >>> network = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> _ = nn.init.orthogonal_(network[0].weight)
    >>> bool(ParsevalRegularizer(network, scale=1.0).penalty() < 1e-9)
    True
    """

    goes_by_role = True

    def __init__(
        self,
        network: nn.Module | Population,
        strength: Strength | None = None,
        *,
        scale: float = 2.0,
        decoupled: bool = False,
        roles: Overrides | None = None,
    ) -> None:
        usual = 1.0 if decoupled else 1e-3
        super().__init__(network, usual if strength is None else strength, roles=roles)
        if not scale > 0:
            raise ValueError(f"expected a scale s above 0, got {scale}: 1 keeps singular values at one")
        self.scale = scale
        self.acts_on_gradients, self.acts_on_parameters = not decoupled, decoupled
        self.needs_step_sizes = decoupled
        # Also if roles leave the output layer out: then no hidden matrix takes its place.
        everything = find_roles(network) | self.roles
        last = output_matrix(network, everything)
        hidden = [name for name in self.parameters if everything[name].kind == "matrix"]
        hidden = [name for name in hidden if name != last or name in (roles or {})]
        self._act_on(hidden, "a hidden weight matrix")

    def add_gradients(self, parameters: Tensors, gradients: Tensors, state: State, strength: Strength) -> None:
        if not self.acts_on_gradients:
            return
        for name, gradient in gradients.items():
            weight = self.roles[name].matrices(parameters[name])
            excess, wide = self._excess(weight)
            excess.mul_(per_member(4 * _share(weight) * strength, excess.ndim))
            first, second = (excess, weight) if wide else (weight, excess)
            if weight is parameters[name] and weight.ndim <= 3:  # added by the product itself
                (gradient.addmm_ if weight.ndim == 2 else gradient.baddbmm_)(first, second)
            else:
                gradient.add_(self.roles[name].fold(first @ second, gradient))

    def change_parameters(self, parameters: Tensors, state: State, strength: Strength, update: Update) -> None:
        if not self.acts_on_parameters:
            return
        for name, parameter in parameters.items():
            weight = self.roles[name].matrices(parameter)
            excess, wide = self._excess(weight)
            largest = torch.linalg.vector_norm(excess, 1, -1, keepdim=True).amax(-2, keepdim=True)
            step = per_member(excess.new_full((), 4 * _share(weight)) * strength * update.step_sizes[name], excess.ndim)
            excess.mul_((0.5 / (self.scale + largest)).clamp(max=step))
            parameter.sub_(self.roles[name].fold(excess @ weight if wide else weight @ excess, parameter))

    def _penalty(self, parameters: Tensors) -> Tensor:
        total = super()._penalty(parameters)
        for name, parameter in parameters.items():
            weight = self.roles[name].matrices(parameter)
            rows, columns = weight.shape[-2:]
            terms = self._excess(weight)[0].square().sum((-2, -1)) + max(0, rows - columns) * self.scale**2
            total = total + _share(weight) * terms.view(*self._members, -1).sum(-1)
        return total

    def _excess(self, weight: Tensor) -> tuple[Tensor, bool]:
        """W Wᵀ − s I, or Wᵀ W − s I if that is smaller, and which of the two."""
        wide = weight.shape[-2] <= weight.shape[-1]
        gram = weight @ weight.mT if wide else weight.mT @ weight
        gram.diagonal(dim1=-2, dim2=-1).sub_(self.scale)
        return gram, wide


def _share(weight: Tensor) -> float:
    return min(1.0, 64 / weight.shape[-2]) ** 2
