"""Spectral norm regularization (Yoshida & Miyato, 2017): the largest singular value of each weight towards zero."""

from collections.abc import Mapping

from torch import nn

from supple.mitigators.kernels import Strength
from supple.mitigators.spectral import SpectralRegularizer
from supple.network.find_roles import Kind, Role, find_roles
from supple.network.population import Population


class SpectralNormRegularizer(SpectralRegularizer):
    r"""Keep each weight matrix's largest singular value small: :math:`R(\theta) = \sum_W \sigma_1(W)^2`.

    :class:`SpectralRegularizer` with target 0 and k = 1 on the matrices alone: biases and gains are free. It is what
    the spectral regularizer is held against, since a pull to zero can collapse a network as L2 does.

    Args:
        network: a module or a :class:`Population`.
        strength: λ; the gradient is 2λσ₁ u vᵀ. Theirs is written λ/2, so their λ is twice this one.
        power_iterations: how many a step; one is enough.
        roles: parameter name to role; parameters that are no matrix are left out in any case.
        seed: of the first singular vectors.

    Source: Yoshida & Miyato, *Spectral Norm Regularization for Improving the Generalizability of Deep Learning*, 2017.
    """

    def __init__(
        self,
        network: nn.Module | Population,
        strength: Strength = 1e-2,
        *,
        power_iterations: int = 1,
        roles: Mapping[str, Kind | Role | None] | None = None,
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
