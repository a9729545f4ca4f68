"""Deep Fourier features."""

import math

import pytest
import torch
from torch import nn

from supple.nn import FourierFeatures


@pytest.mark.parametrize("dim", [-1, 0, 1, 2])
def test_the_sine_and_the_cosine_side_by_side(dim):
    x = torch.randn(2, 3, 4)
    sine, cosine = FourierFeatures(dim)(x).chunk(2, dim)
    for values, function in ((sine, math.sin), (cosine, math.cos)):
        torch.testing.assert_close(values, torch.tensor([function(v) for v in x.flatten().tolist()]).view_as(x))


def test_squared_slopes_add_up_to_one():
    x = torch.linspace(-9, 9, 50, requires_grad=True)
    slopes = [torch.autograd.grad(FourierFeatures()(x).chunk(2)[part].sum(), x)[0] for part in (0, 1)]
    torch.testing.assert_close(slopes[0] ** 2 + slopes[1] ** 2, torch.ones(50))
    assert repr(FourierFeatures(1)) == "FourierFeatures(dim=1)"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_the_type_is_kept(dtype):
    network = nn.Sequential(nn.Conv2d(2, 3, 3), FourierFeatures(1), nn.Conv2d(6, 1, 1)).to(dtype)
    assert network(torch.randn(5, 2, 4, 4, dtype=dtype)).dtype == dtype
