"""The optimizers, which control uses too and which therefore live below."""

from supple.optimizers import adam, adam_moments

__all__ = ["adam", "adam_moments"]
