"""Measurements inside a network that show whether it keeps or loses its plasticity."""

from supple.diagnostics.inspection import DIAGNOSTICS, Diagnostic, Inspection
from supple.diagnostics.monitor import PlasticityMonitor

__all__ = ["DIAGNOSTICS", "Diagnostic", "Inspection", "PlasticityMonitor"]
