"""The base of regularizers that are a squared distance of the parameters, or of a function of them."""

from abc import abstractmethod

from torch import Tensor, nn

from supple.mitigators.base import Mitigator
from supple.mitigators.kernels import Strength, per_member
from supple.mitigators.states import State, Tensors
from supple.network.population import Population
from supple.network.roles import Overrides


class SquaredDistance(Mitigator):
    r"""A penalty :math:`R(\theta) = \sum_p w_p \lVert d(p) \rVert^2` over parameter tensors, with gradient 2 w d(p).

    A method defines the deviation ``d``: the parameter minus a value that may depend only on the order of the
    parameter's entries, which a small step does not change.
    """

    works_on_shards = True

    def __init__(
        self,
        network: nn.Module | Population,
        strength: Strength = 1e-4,
        *,
        roles: Overrides | None = None,
    ) -> None:
        super().__init__(network, strength, roles=roles)

    def add_gradients(self, parameters: Tensors, gradients: Tensors, state: State, strength: Strength) -> None:
        for name, gradient in gradients.items():
            deviation = self._deviation(name, parameters[name], state)
            if isinstance(strength, Tensor):
                gradient.add_(deviation * per_member(2 * self._weight(name) * strength, gradient.ndim))
            else:
                gradient.add_(deviation, alpha=2 * self._weight(name) * strength)

    @abstractmethod
    def _deviation(self, name: str, parameter: Tensor, state: State) -> Tensor:
        """The deviation d(p), with the parameter's shape."""

    def _weight(self, name: str) -> float:
        return 1.0

    def _penalty(self, parameters: Tensors) -> Tensor:
        sums, state = {}, self._local_state()
        for name, parameter in parameters.items():
            deviation = self.roles[name].vector(self._deviation(name, parameter, state))
            sums[name] = self._weight(name) * deviation.square().sum(-1)
        return sum(self._sum_over_ranks(sums).values(), super()._penalty(parameters))
