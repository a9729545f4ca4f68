"""The precision of float32 matrix products in training steps."""

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
