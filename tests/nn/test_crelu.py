"""Concatenated ReLU."""

import pytest
import torch
from torch import nn

from supple.nn import CReLU


@pytest.mark.parametrize("dim", [-1, 0, 1, 2])
def test_the_positive_and_the_negative_part_side_by_side(dim):
    x = torch.randn(2, 3, 4)
    y = CReLU(dim)(x)
    positive, negative = y.chunk(2, dim)
    assert (y >= 0).all()
    assert torch.equal(positive - negative, x)
    assert torch.equal(positive + negative, x.abs())


def test_features_of_a_linear_layer_by_default():
    assert CReLU()(torch.tensor([[3.0, -1.0, 0.0]])).tolist() == [[3, 0, 0, 0, 1, 0]]
    assert repr(CReLU(1)) == "CReLU(dim=1)"


def test_no_unit_is_dead():
    """Where ReLU passes no gradient back, the negative part does."""
    x = torch.tensor([2.0, -2.0], requires_grad=True)
    CReLU()(x).sum().backward()
    assert x.grad.tolist() == [1, -1]


def test_channels_of_a_convolution():
    network = nn.Sequential(nn.Conv2d(2, 3, 3), CReLU(1), nn.Conv2d(6, 1, 1))
    assert network(torch.randn(5, 2, 4, 4)).shape == (5, 1, 2, 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_the_type_is_kept(dtype):
    assert CReLU()(torch.ones(2, dtype=dtype)).dtype == dtype
