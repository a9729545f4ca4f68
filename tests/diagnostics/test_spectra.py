"""What singular values say, against closed forms and numpy in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from supple.diagnostics import spectra
from supple.diagnostics.spectra import singular_values


def naive_ranks(matrix: np.ndarray) -> dict[str, float]:
    """Condition number, stable rank, effective rank and rank of a share, of one matrix, as their sources print them."""
    values = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    shares = values / values.sum()
    count = 1
    while values[:count].sum() < 0.99 * values.sum() * (1 - 1e-9):
        count += 1
    return {
        "condition_number": values[0] / values[-1],
        "stable_rank": np.linalg.norm(matrix.astype(np.float64), "fro") ** 2 / values[0] ** 2,
        "effective_rank": math.exp(-sum(share * math.log(share) for share in shares if share > 0)),
        "rank_of_share": count,
    }


matrices = st.builds(
    lambda leading, m, n, scale, seed: (
        scale * torch.randn(*leading, m, n, generator=torch.Generator().manual_seed(seed))
    ),
    st.lists(st.integers(1, 3), max_size=2),
    st.integers(1, 12),
    st.integers(1, 12),
    st.sampled_from([1e-30, 1e-3, 1.0, 1e6, 1e30]),
    st.integers(0, 999),
)


@settings(max_examples=80)
@given(matrices)
def test_against_numpy(device, matrix):
    values = singular_values(matrix.to(device)).cpu()
    expected = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    # The smallest of a Gram matrix in float64 is known to about 1e-8 of the largest.
    np.testing.assert_allclose(values.numpy(), expected, rtol=1e-9, atol=1e-7 * expected.max())
    for index in np.ndindex(*matrix.shape[:-2]):
        oracle = naive_ranks(matrix[index].numpy())
        for name, value in oracle.items():
            found = getattr(spectra, name)(values)[index].item()
            assert found == pytest.approx(value, rel=1e-6 if value < 1e3 else 1e-1), name


@pytest.mark.parametrize("leading", [(), (3,), (2, 3)], ids=str)
def test_orthogonal(leading, device):
    matrix = torch.linalg.qr(torch.randn(*leading, 8, 5, dtype=torch.float64))[0] * 3
    values = singular_values(matrix.to(device)).cpu()
    torch.testing.assert_close(values, torch.full((*leading, 5), 3.0).double(), rtol=1e-12, atol=0)
    for name, expected in {"condition_number": 1, "stable_rank": 5, "effective_rank": 5, "rank_of_share": 5}.items():
        found = getattr(spectra, name)(values)
        torch.testing.assert_close(found, torch.full(leading, float(expected)).double(), rtol=1e-9, atol=0, msg=name)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_rank_one(dtype, device):
    u, v = torch.tensor([1.0, -2.0, 0.0, 2.0]), torch.tensor([3.0, 0.0, 4.0])
    values = singular_values(torch.outer(u, v).to(device, dtype))
    assert values.tolist() == [pytest.approx(15.0), 0, 0]
    assert spectra.condition_number(values) == math.inf
    for name in ("stable_rank", "effective_rank", "rank_of_share"):
        assert getattr(spectra, name)(values).item() == pytest.approx(1, abs=1e-12), name


def test_rank_one_without_round_numbers(device):
    values = singular_values(torch.outer(torch.randn(300).double(), torch.randn(200).double()).to(device))
    assert not values[1:].any(), "what rounding leaves is zero"


@pytest.mark.parametrize("shape", [(1, 1), (4, 3), (2, 3, 4)], ids=str)
def test_zero(shape, device):
    values = singular_values(torch.zeros(shape, device=device))
    assert not values.any()
    assert (spectra.condition_number(values) == math.inf).all()
    for name in ("stable_rank", "effective_rank", "rank_of_share"):
        assert (getattr(spectra, name)(values) == 0).all(), name


def test_diagonal(device):
    values = singular_values(torch.diag(torch.tensor([1.0, -8.0, 4.0, 2.0])).to(device))
    assert values.tolist() == pytest.approx([8, 4, 2, 1])
    assert spectra.condition_number(values).item() == pytest.approx(8)
    assert spectra.stable_rank(values).item() == pytest.approx(85 / 64)
    # Shares 8/15, 4/15, 2/15, 1/15: entropy ln 15 - (8 ln 8 + 4 ln 4 + 2 ln 2) / 15 = ln 15 - 34/15 ln 2.
    assert spectra.effective_rank(values).item() == pytest.approx(15 * 2 ** (-34 / 15))
    assert spectra.rank_of_share(values) == 4
    assert spectra.rank_of_share(values, 0.8) == 2  # 12 of 15 exactly
    assert spectra.rank_of_share(values, 0.81) == 3


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_nan_and_leaves_the_other_matrices_alone(wrong, device):
    matrix = torch.randn(2, 4, 3, device=device)
    matrix[1, 2, 1] = wrong
    values = singular_values(matrix)
    torch.testing.assert_close(values[0], singular_values(matrix[0]))
    for name in ("condition_number", "stable_rank", "effective_rank", "rank_of_share"):
        found = getattr(spectra, name)(values)
        assert found.isnan().tolist() == [False, True], name


def test_a_small_singular_value_of_a_large_matrix(device):
    u, v = (torch.linalg.qr(torch.randn(64, 64).double())[0] for _ in range(2))
    wanted = torch.logspace(0, -6, 64, dtype=torch.float64)
    found = singular_values(((u * wanted) @ v).to(device)).cpu()
    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=0)
