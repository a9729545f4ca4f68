"""The methods that keep a network plastic, one file a published method."""

from supple.mitigators.base import Mitigator
from supple.mitigators.l2 import L2InitRegularizer, L2Regularizer
from supple.mitigators.spectral import SpectralRegularizer

__all__ = ["L2InitRegularizer", "L2Regularizer", "Mitigator", "SpectralRegularizer"]
