"""Unbiased stochastic rounding to half precision, so that many small changes are not lost one by one."""

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)
_SMALLEST_NORMAL, _SMALLEST = 2.0**-14, 2.0**-24
"""The smallest normal and smallest positive float16; between them float16 numbers are equally spaced."""


def rounded_at_random(values: Tensor, dtype: torch.dtype, random: torch.Generator) -> Tensor:
    """Round float32 ``values`` to bfloat16 or float16: to one of the two neighbours, more often to the nearer one.

    The expected result is the value itself. A value that ``dtype`` can represent does not change.

    >>> values = torch.full((100_000,), 1 + 2.0**-10)  # a quarter of the way to the next bfloat16
    >>> rounded = rounded_at_random(values, torch.bfloat16, torch.Generator().manual_seed(0))
    >>> rounded.unique().tolist()
    [1.0, 1.0078125]
    """
    dropped = 16 if dtype == torch.bfloat16 else 13  # bits of float32's mantissa that do not fit
    noise = torch.randint(2**dropped, values.shape, dtype=torch.int32, device=values.device, generator=random)
    bits = (values.contiguous().view(torch.int32) + noise) & -(2**dropped)
    result = torch.where(values.isfinite(), bits.view(torch.float32), values)
    if dtype == torch.float16:
        evenly = torch.floor(values / _SMALLEST + (noise + 0.5) / 2**dropped) * _SMALLEST
        result = torch.where(values.abs() < _SMALLEST_NORMAL, evenly, result)
    return result.to(dtype)
