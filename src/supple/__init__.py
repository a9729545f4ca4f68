"""Keep PyTorch networks able to learn as their data changes."""

from supple import mitigators, nn, roles
from supple.diagnostics import PlasticityMonitor, plasticity_test
from supple.mitigators import *  # noqa: F403 - the methods: mitigators.__all__ is the only list of them
from supple.network.population import Population
from supple.roles import Role, describe

__all__ = ["PlasticityMonitor", "Population", "Role", "describe", "nn", "plasticity_test", "roles"]
__all__ += mitigators.__all__
__version__ = "0.1.0"
