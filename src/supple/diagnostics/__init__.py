"""What can be seen inside a network that keeps, or loses, its plasticity."""

from supple.diagnostics.inspection import DIAGNOSTICS, Diagnostic, Inspection
from supple.diagnostics.monitor import PlasticityMonitor

__all__ = ["DIAGNOSTICS", "Diagnostic", "Inspection", "PlasticityMonitor"]
