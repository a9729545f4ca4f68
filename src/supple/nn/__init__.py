"""Methods that change the architecture instead of the training."""

from supple.nn.crelu import CReLU
from supple.nn.fourier import FourierFeatures
from supple.nn.spectral_normalization import SpectralNormalization, spectral_normalization

__all__ = ["CReLU", "FourierFeatures", "SpectralNormalization", "spectral_normalization"]
