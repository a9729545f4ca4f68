"""Keep PyTorch networks able to learn as their data changes."""

from supple import nn
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
from supple.network.find_roles import Role, describe
from supple.network.population import Population

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
]
__version__ = "0.1.0"
