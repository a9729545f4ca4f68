"""L2 regularization towards the initial parameters (Kumar et al., 2023)."""

from torch import Tensor, nn

from supple.mitigators.kernels import Strength
from supple.mitigators.squared_distance import SquaredDistance
from supple.mitigators.states import State
from supple.network.population import Population
from supple.network.roles import Overrides


class L2InitRegularizer(SquaredDistance):
    r"""Keep all parameters near their initial values: :math:`R(\theta) = \lVert \theta - \theta^{(0)} \rVert^2`.

    θ⁽⁰⁾ is a copy of the parameters when the method is built, so build it before training; it doubles their memory.

    Args:
        network: a module or a :class:`Population`.
        strength: λ; the gradient is 2λ(θ − θ⁽⁰⁾).
        roles: None for a parameter leaves it out; the role itself makes no difference here.

    Source: Kumar, Marklund & Van Roy, *Maintaining Plasticity in Continual Learning via Regenerative Regularization*.
    Their code writes λ/2, so its λ is twice this one, and leaves out LayerNorm: to do so, pass None for its parameters
    in ``roles``.
    """

    def __init__(
        self,
        network: nn.Module | Population,
        strength: Strength = 1e-4,
        *,
        roles: Overrides | None = None,
    ) -> None:
        super().__init__(network, strength, roles=roles)
        self.state = {name: {"initial": parameter.detach().clone()} for name, parameter in self.parameters.items()}

    def _deviation(self, name: str, parameter: Tensor, state: State) -> Tensor:
        return parameter - state[name]["initial"]
