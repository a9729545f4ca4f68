"""supple keeps neural networks trainable while the data they learn from keeps changing."""

from supple import nn
from supple.mitigators import (
    UPGD,
    HareAndTortoise,
    L2InitRegularizer,
    L2Regularizer,
    Mitigator,
    NormalizeAndProject,
    ParsevalRegularizer,
    ShrinkAndPerturb,
    SpectralNormRegularizer,
    SpectralRegularizer,
    StreamingEWC,
    WassersteinRegularizer,
    WeightClipping,
)
from supple.population import Population
from supple.roles import Role, describe

__all__ = [
    "UPGD",
    "HareAndTortoise",
    "L2InitRegularizer",
    "L2Regularizer",
    "Mitigator",
    "NormalizeAndProject",
    "ParsevalRegularizer",
    "Population",
    "Role",
    "ShrinkAndPerturb",
    "SpectralNormRegularizer",
    "SpectralRegularizer",
    "StreamingEWC",
    "WassersteinRegularizer",
    "WeightClipping",
    "describe",
    "nn",
]
__version__ = "0.1.0"
