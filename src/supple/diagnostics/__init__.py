"""Measurements inside a network that show whether it keeps or loses its plasticity."""

# The order of the imports is that of DIAGNOSTICS, which the configurations of runs, and so their folders, depend on.
from supple.diagnostics import weights, activations, gradients  # isort: skip
from supple.diagnostics.experiment import plasticity_test
from supple.diagnostics.facts import DIAGNOSTICS, Diagnostic, Metric, diagnostic
from supple.diagnostics.inspection import Inspection
from supple.diagnostics.monitor import PlasticityMonitor
from supple.diagnostics.verdict import Difference, PlasticityTest

__all__ = [
    "DIAGNOSTICS",
    "Diagnostic",
    "Difference",
    "Inspection",
    "Metric",
    "PlasticityMonitor",
    "PlasticityTest",
    "activations",
    "diagnostic",
    "gradients",
    "plasticity_test",
    "weights",
]
