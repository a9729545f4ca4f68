"""Keep PyTorch networks able to learn as their data changes."""

from supple import nn, roles
from supple.diagnostics import PlasticityMonitor
from supple.mitigators import (
    UPGD,
    ContinualBackprop,
    HareAndTortoise,
    L2InitRegularizer,
    L2Regularizer,
    Mitigator,
    NetworkReset,
    NormalizeAndProject,
    ParsevalRegularizer,
    ReDo,
    SelfNormalizedResets,
    ShrinkAndPerturb,
    SpectralNormRegularizer,
    SpectralRegularizer,
    StreamingEWC,
    WassersteinRegularizer,
    WeightClipping,
)
from supple.network.population import Population
from supple.roles import Role, describe

__all__ = [
    "UPGD",
    "ContinualBackprop",
    "HareAndTortoise",
    "L2InitRegularizer",
    "L2Regularizer",
    "Mitigator",
    "NetworkReset",
    "NormalizeAndProject",
    "ParsevalRegularizer",
    "PlasticityMonitor",
    "Population",
    "ReDo",
    "Role",
    "SelfNormalizedResets",
    "ShrinkAndPerturb",
    "SpectralNormRegularizer",
    "SpectralRegularizer",
    "StreamingEWC",
    "WassersteinRegularizer",
    "WeightClipping",
    "describe",
    "nn",
    "roles",
]
__version__ = "0.1.0"
