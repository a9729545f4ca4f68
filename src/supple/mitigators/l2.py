"""L2 regularization, towards zero and towards the initial parameters."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from supple.mitigators.base import Mitigator, State, Strength, Tensors, per_member
from supple.population import Population
from supple.roles import Kind, Role


class L2Regularizer(Mitigator):
    r"""Keep all parameters near zero: :math:`R(\theta) = \lVert \theta \rVert^2`.

    Args:
        network: a module or a :class:`Population`.
        strength: λ; the gradient is 2λθ. 1e-4 is the paper's choice on CIFAR and tiny-ImageNet.
        roles: None for a parameter leaves it out; the role itself makes no difference here.

    >>> network = nn.Linear(2, 1)
    >>> L2Regularizer(network, strength=0.5).before_step()
    >>> bool((network.weight.grad == network.weight).all())
    True
    """

    def __init__(
        self,
        network: nn.Module | Population,
        strength: Strength = 1e-4,
        *,
        roles: Mapping[str, Kind | Role | None] | None = None,
    ) -> None:
        super().__init__(network, strength, roles=roles)

    def add_gradients(self, parameters: Tensors, gradients: Tensors, state: State, strength: Strength) -> None:
        for name, gradient in gradients.items():
            gradient.add_(self._deviation(name, parameters[name], state) * per_member(2 * strength, gradient.ndim))

    def _penalty(self, parameters: Tensors) -> Tensor:
        total = super()._penalty(parameters)
        for name, parameter in parameters.items():
            deviation = self._deviation(name, parameter, self.state)
            total = total + self.roles[name].vector(deviation).square().sum(-1)
        return total

    def _deviation(self, name: str, parameter: Tensor, state: State) -> Tensor:
        """What is to become zero."""
        return parameter


class L2InitRegularizer(L2Regularizer):
    r"""Keep all parameters near their initial values: :math:`R(\theta) = \lVert \theta - \theta^{(0)} \rVert^2`.

    θ⁽⁰⁾ is a copy of the parameters as they are when this is built, so build it before training; it costs their memory.

    Source: Kumar et al., *Maintaining Plasticity in Continual Learning via Regenerative Regularization*, 2023.
    """

    def __init__(
        self,
        network: nn.Module | Population,
        strength: Strength = 1e-4,
        *,
        roles: Mapping[str, Kind | Role | None] | None = None,
    ) -> None:
        super().__init__(network, strength, roles=roles)
        with torch.no_grad():
            self.state = {name: {"initial": parameter.clone()} for name, parameter in self.parameters.items()}

    def _deviation(self, name: str, parameter: Tensor, state: State) -> Tensor:
        return parameter - state[name]["initial"]
