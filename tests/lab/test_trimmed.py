"""Trimmed convolutions against torch's, which multiply by the padding too."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from supple.lab import trimmed
from supple.lab.trimmed import TrimmedConv2d


@st.composite
def layers(draw):
    """A convolution, its input, and both sides' own kernel, stride and padding."""
    kernel, stride = (draw(st.tuples(st.integers(1, 5), st.integers(1, 5))) for _ in range(2))
    padding = tuple(draw(st.integers(0, 4)) for _ in range(2))
    size = [draw(st.integers(max(1, k - 2 * p), 7)) for k, p in zip(kernel, padding, strict=True)]
    groups = draw(st.integers(1, 2))
    options = {"stride": stride, "padding": padding, "groups": groups, "bias": draw(st.booleans())}
    return nn.Conv2d(2, 4, kernel, **options, dtype=torch.float64), torch.randn(3, 2, *size, dtype=torch.float64)


def output_and_gradients(layer, x):
    x = x.clone().requires_grad_()
    output = layer(x)
    (output.sin().sum()).backward()
    return output, x.grad, *(parameter.grad for parameter in layer.parameters())


@given(layers())
def test_the_same_function(given_layer):
    layer, x = given_layer
    other = copy.deepcopy(layer)
    other.__class__ = TrimmedConv2d
    torch.testing.assert_close(output_and_gradients(other, x), output_and_gradients(layer, x))


@pytest.mark.parametrize(
    ("size", "stride", "taps"), [((1, 1), 1, (1, 1)), ((2, 2), 2, (2, 2)), ((1, 4), 1, (1, 3)), ((2, 2), 1, (3, 3))]
)
def test_what_is_left_of_a_kernel(size, stride, taps, monkeypatch):
    seen = []
    monkeypatch.setattr(trimmed, "conv2d", lambda x, weight, *others, **named: seen.append(weight.shape[-2:]))
    TrimmedConv2d(2, 4, 3, stride=stride, padding=1)(torch.randn(3, 2, *size))
    assert seen == [taps]


@pytest.mark.parametrize("options", [{"padding": "same"}, {"padding_mode": "circular"}, {"dilation": 2, "padding": 2}])
def test_other_paddings_are_left_to_torch(options):
    layer = nn.Conv2d(2, 4, 3, **({"padding": 1} | options))
    other = copy.deepcopy(layer)
    other.__class__ = TrimmedConv2d
    x = torch.randn(3, 2, 3, 3)
    assert torch.equal(other(x), layer(x))
