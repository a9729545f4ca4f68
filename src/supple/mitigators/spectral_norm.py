"""Spectral norm regularization (Yoshida & Miyato, 2017): pulls each weight's largest singular value towards zero."""

from torch import nn

from supple.mitigators.kernels import Strength
from supple.mitigators.spectral import SpectralRegularizer
from supple.network.find_roles import find_roles
from supple.network.population import Population
from supple.network.roles import Overrides


class SpectralNormRegularizer(SpectralRegularizer):
    r"""Keep each weight matrix's largest singular value small: :math:`R(\theta) = \sum_W \sigma_1(W)^2`.

    :class:`SpectralRegularizer` with target 0 and k = 1 on the matrices only: biases and gains are free. It is the
    baseline for the spectral regularizer, since a pull to zero can collapse a network as L2 does.

    Args:
        network: a module or a :class:`Population`.
        strength: λ; the gradient is 2λσ₁ u vᵀ. The source writes λ/2, so its λ is twice this one.
        power_iterations: the number per step; one is enough.
        roles: parameter name to role; parameters that are not matrices are always left out.
        seed: of the first singular vectors.

    Source: Yoshida & Miyato, *Spectral Norm Regularization for Improving the Generalizability of Deep Learning*, 2017.
    """

    def __init__(
        self,
        network: nn.Module | Population,
        strength: Strength = 1e-2,
        *,
        power_iterations: int = 1,
        roles: Overrides | None = None,
        seed: int = 0,
    ) -> None:
        others = {name: None for name, role in find_roles(network, roles).items() if role.kind in ("vector", "scale")}
        super().__init__(
            network,
            strength,
            exponent=1,
            target=0.0,
            power_iterations=power_iterations,
            roles={**(roles or {}), **others},
            seed=seed,
        )
