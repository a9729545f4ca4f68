"""The precision of arithmetic in training steps."""

import contextlib
from collections.abc import Iterator

import torch

MATMUL_PRECISIONS = ("highest", "high", "medium")
"""The values that ``torch.set_float32_matmul_precision`` accepts."""


@contextlib.contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Use this precision of float32 matrix products in the block only, so that measurements stay exact."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def flushed_denormals() -> Iterator[bool]:
    """Treat subnormal numbers as zero in the block; it is given whether this processor can.

    Weights driven towards zero become subnormal numbers, which make a step ten times slower.
    """
    before = bool((torch.tensor([1e-40]) * 1 == 0).item())
    can_flush = torch.set_flush_denormal(True)
    try:
        yield can_flush
    finally:
        torch.set_flush_denormal(before)
