"""Spectral normalization beside torch's own, and the largest singular value beside an SVD."""

import copy

import pytest
import torch
from torch import nn

from supple.nn import spectral_normalization

LAYERS = {
    "linear": lambda: nn.Linear(5, 4),
    "conv2d": lambda: nn.Conv2d(2, 5, 3),
    "conv-transpose1d": lambda: nn.ConvTranspose1d(5, 3, 2),
    "conv-transpose2d": lambda: nn.ConvTranspose2d(5, 3, 2),
    "conv-transpose-grouped": lambda: nn.ConvTranspose2d(6, 4, 3, groups=2),
    "embedding": lambda: nn.Embedding(6, 4),
}
HALF = [torch.bfloat16, torch.float16]


def norm_of(layer):
    weight = layer.weight.detach().double()
    return torch.linalg.matrix_norm(weight.movedim(int("Transpose" in type(layer).__name__), 0).flatten(1), ord=2)


@pytest.mark.parametrize("name", LAYERS)
def test_as_torchs_own(name):
    """The same weight, and the same gradient of what it is computed from."""
    mine = LAYERS[name]()
    theirs = nn.utils.parametrizations.spectral_norm(copy.deepcopy(mine), n_power_iterations=100)
    spectral_normalization(mine)
    for _ in range(200):
        weight = mine.weight
    random = torch.randn_like(weight)
    gradients = []
    for layer in (mine, theirs):
        (layer.weight * random).sum().backward()
        gradients.append(layer.parametrizations.weight.original.grad)
    torch.testing.assert_close(mine.weight, theirs.weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)
    assert norm_of(mine).item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("name", ["linear", "conv2d", "conv-transpose2d"])
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("before", [True, False])
def test_in_half_precision(name, dtype, before):
    layer = LAYERS[name]()
    layer = spectral_normalization(layer.to(dtype)) if before else spectral_normalization(layer).to(dtype)
    for _ in range(50):
        weight = layer.weight
    assert weight.dtype == dtype
    assert norm_of(layer).item() == pytest.approx(1, abs=1e-2)
    weight.sum().backward()
    assert layer.parametrizations.weight.original.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
def test_a_weight_of_zeros_stays_zero(dtype):
    layer = nn.Linear(3, 2, dtype=dtype)
    nn.init.zeros_(layer.weight)
    assert not spectral_normalization(layer).weight.any()


def test_under_autocast():
    layer = spectral_normalization(nn.Linear(3, 2))
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.randn(4, 3)).sum().backward()
        assert layer.weight.dtype == torch.float32
    assert layer.parametrizations.weight.original.grad.isfinite().all()


@pytest.mark.parametrize(
    "make",
    [lambda: nn.LayerNorm(3), lambda: nn.MultiheadAttention(4, 2), nn.ReLU, lambda: nn.LazyLinear(2)],
    ids=["norm", "attention", "relu", "lazy"],
)
def test_a_layer_without_a_weight_matrix_is_refused(make):
    layer = make()
    with pytest.raises(ValueError, match=f"two or more dimensions, got {type(layer).__name__}"):
        spectral_normalization(layer)


def test_an_evaluation_changes_no_vector():
    layer = spectral_normalization(nn.Linear(4, 3))
    normalization = layer.parametrizations.weight[0]
    with torch.no_grad():
        layer.parametrizations.weight.original.normal_()  # so that the vector of before is another's
    before = normalization.v.clone()
    layer.eval()(torch.randn(2, 4))
    assert torch.equal(normalization.v, before)
    layer.train()(torch.randn(2, 4))
    assert not torch.equal(normalization.v, before)
