"""The power iteration against a full SVD in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from supple.kernels.power_iteration import power_iteration, spectral_norm

SHAPES = [(1, 1), (1, 7), (7, 1), (3, 5), (64, 64), (256, 1024), (2, 4, 6), (2, 3, 5, 4)]


def directions(weight: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (*weight.shape[:-2], weight.shape[-1])
    dtype = torch.promote_types(weight.dtype, torch.float32)
    v, restart = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    return v / v.norm(dim=-1, keepdim=True), restart / restart.norm(dim=-1, keepdim=True)


def sigma_1(weight: Tensor) -> Tensor:
    return torch.linalg.svdvals(weight.double())[..., 0]


def with_gap(*shape: int) -> Tensor:
    """Singular values 2, 1, 1/2, ...: directions that are well defined."""
    u, values, vh = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    return ((u * 2.0 ** (1 - torch.arange(values.shape[-1]))) @ vh).float()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_converges_to_the_svd(shape):
    weight = with_gap(*shape)
    sigma, u, v = power_iteration(weight, *directions(weight), 30)
    left, values, right = torch.linalg.svd(weight.double(), full_matrices=False)
    torch.testing.assert_close(sigma.double(), values[..., 0], rtol=1e-6, atol=0)
    outer = u.unsqueeze(-1) * v.unsqueeze(-2)
    expected = left[..., :, :1] * right[..., :1, :]
    assert (outer - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_value_and_vectors_belong_together_before_convergence(iterations):
    weight = torch.randn(2, 9, 6)
    sigma, u, v = power_iteration(weight, *directions(weight), iterations)
    torch.testing.assert_close(torch.einsum("...m,...mn,...n->...", u, weight, v), sigma, rtol=1e-6, atol=0)
    for vector in (u, v):
        torch.testing.assert_close(vector.norm(dim=-1), torch.ones(2), rtol=1e-6, atol=0)
    assert not torch.allclose(sigma.double(), sigma_1(weight), rtol=1e-4), "pick a matrix that takes longer"


def test_one_iteration_a_step_follows_a_moving_matrix():
    weight, drift = with_gap(20, 30), with_gap(20, 30) / 1000
    v, restart = directions(weight)
    errors = []
    for _ in range(300):
        weight = weight + drift
        sigma, _, v = power_iteration(weight, v, restart)
        errors.append((sigma / sigma_1(weight) - 1).abs().item())
    assert max(errors[:3]) > 1e-3
    assert max(errors[50:]) < 1e-5


def test_several_iterations_are_one_repeated():
    weight = torch.randn(8, 5)
    v, restart = directions(weight)
    at_once = power_iteration(weight, v, restart, 3)
    for _ in range(3):
        one_by_one = power_iteration(weight, v, restart)
        v = one_by_one.v
    assert all(torch.equal(a, b) for a, b in zip(at_once, one_by_one, strict=True))


matrices = st.builds(
    lambda leading, m, n, scale, seed: (
        scale * torch.randn(*leading, m, n, generator=torch.Generator().manual_seed(seed))
    ),
    st.lists(st.integers(1, 3), max_size=2),
    st.integers(1, 12),
    st.integers(1, 12),
    st.sampled_from([1e-12, 1e-3, 1.0, 1e6]),
    st.integers(0, 99),
)


@settings(max_examples=60)
@given(matrices, st.integers(1, 5))
def test_never_above_the_true_value(weight, iterations):
    sigma = power_iteration(weight, *directions(weight), iterations).sigma.double()
    assert (sigma <= sigma_1(weight) * (1 + 1e-6)).all()


@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1e-25, 1e-21, 1e-18, 1e15])
def test_extreme_scales_neither_underflow_to_nonsense_nor_overflow(scale):
    weight = with_gap(6, 4) * scale
    sigma, u, v = power_iteration(weight, *directions(weight), 30)
    assert sigma.double() <= sigma_1(weight) * (1 + 1e-5)
    assert u.norm() <= 1 + 1e-5
    assert v.norm() <= 1 + 1e-5


@pytest.mark.parametrize("swap", [(3.0, 1.0), (2.0, 1.99)], ids=str)
def test_a_diagonal_whose_largest_entry_changes_place_is_found_again(swap):
    large, small = swap
    weight = torch.diag(torch.tensor([large, small, 0.5]))
    v, restart = directions(weight)
    v = power_iteration(weight, v, restart, 2_000 if small > 1.9 else 500).v
    moved = torch.diag(torch.tensor([0.5, 0.6, 1.4]))
    for _ in range(60):
        sigma, u, v = power_iteration(moved, v, restart)
    torch.testing.assert_close(sigma, torch.tensor(1.4))
    torch.testing.assert_close(u * v, torch.tensor([0.0, 0.0, 1.0]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_zero_matrix_is_zero_and_recovers(dtype):
    weight = torch.zeros(2, 4, 3, dtype=dtype)
    v, restart = directions(weight)
    for _ in range(3):
        sigma, u, v = power_iteration(weight, v, restart)
        assert not sigma.any()
        assert not u.any()
        assert not v.any()
    weight = weight.clone()
    weight[1, 2, 1] = 1.5
    for _ in range(10):
        sigma, _, v = power_iteration(weight, v, restart)
    torch.testing.assert_close(sigma.float(), torch.tensor([0.0, 1.5]), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("dtype", "computed"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
    ids=str,
)
def test_half_precision_iterates_in_float32(dtype, computed):
    weight = with_gap(12, 8).to(dtype)
    triple = power_iteration(weight, *directions(weight), 40)
    assert all(part.dtype == computed for part in triple)
    # The weight itself is rounded; its singular value is found as if it were float32.
    torch.testing.assert_close(triple.sigma.double(), sigma_1(weight), rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_spectral_norm_is_the_largest_singular_value(shape, dtype):
    weight = torch.randn(shape, dtype=dtype)
    rtol = 30 * torch.finfo(dtype).eps * math.sqrt(max(shape[-2:]))
    torch.testing.assert_close(spectral_norm(weight).double(), sigma_1(weight), rtol=rtol, atol=0)


def test_spectral_norm_of_zero_is_zero():
    assert not spectral_norm(torch.zeros(3, 2, 5)).any()
