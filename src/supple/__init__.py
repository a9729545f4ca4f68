"""supple keeps neural networks trainable while the data they learn from keeps changing."""

from supple.mitigators import L2InitRegularizer, L2Regularizer, Mitigator, SpectralRegularizer
from supple.population import Population
from supple.roles import Role, describe

__all__ = [
    "L2InitRegularizer",
    "L2Regularizer",
    "Mitigator",
    "Population",
    "Role",
    "SpectralRegularizer",
    "describe",
]
__version__ = "0.1.0"
