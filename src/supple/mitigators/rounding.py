"""Rounding to half precision without bias, so that many small changes are not lost one by one."""

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)
_SMALLEST_NORMAL, _SMALLEST = 2.0**-14, 2.0**-24
"""Of float16; between them its numbers lie evenly."""


def rounded_at_random(values: Tensor, dtype: torch.dtype, random: torch.Generator) -> Tensor:
    """float32 ``values`` as bfloat16 or float16: one of the two neighbours, the nearer one with more probability.

    The mean over the random numbers is the value itself. What ``dtype`` can represent stays as it is.

    >>> values = torch.full((100_000,), 1 + 2.0**-10)  # a quarter of the way to the next bfloat16
    >>> rounded = rounded_at_random(values, torch.bfloat16, torch.Generator().manual_seed(0))
    >>> rounded.unique().tolist()
    [1.0, 1.0078125]
    """
    dropped = 16 if dtype == torch.bfloat16 else 13  # bits of float32's mantissa that have no place
    noise = torch.randint(2**dropped, values.shape, dtype=torch.int32, device=values.device, generator=random)
    bits = (values.contiguous().view(torch.int32) + noise) & -(2**dropped)
    result = torch.where(values.isfinite(), bits.view(torch.float32), values)
    if dtype == torch.float16:
        evenly = torch.floor(values / _SMALLEST + (noise + 0.5) / 2**dropped) * _SMALLEST
        result = torch.where(values.abs() < _SMALLEST_NORMAL, evenly, result)
    return result.to(dtype)
