"""Methods that change the architecture and not the training."""

from supple.nn.crelu import CReLU

__all__ = ["CReLU"]
