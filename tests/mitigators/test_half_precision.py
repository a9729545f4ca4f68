"""Small changes of bfloat16 and float16 parameters are rounded without bias, and so not lost."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from supple import L2Regularizer, NormalizeAndProject, ParsevalRegularizer, ShrinkAndPerturb, SpectralRegularizer
from supple.mitigators.rounding import rounded_at_random
from support.method_cases import build, every_case
from support.resting import resting

HALVES = [torch.bfloat16, torch.float16]


@settings(max_examples=60)
@given(
    dtype=st.sampled_from(HALVES),
    value=st.floats(-60000, 60000, width=32) | st.floats(-(2.0**-13), 2.0**-13, width=32),
    seed=st.integers(0, 9),
)
def test_one_of_the_two_neighbours_and_right_on_average(dtype, value, seed):
    values = torch.full((4096,), value)
    rounded = rounded_at_random(values, dtype, torch.Generator().manual_seed(seed)).double()
    nearest = torch.tensor(value).to(dtype).double()
    low, high = rounded.min().item(), rounded.max().item()
    assert len(rounded.unique()) <= 2
    assert low <= value <= high or low == high == nearest
    if low < high:
        width = high - low
        share = (value - low) / width
        # Bernstein's inequality: further away with a probability below 1e-9, however small the share is.
        likely = (2 * 21 * share * (1 - share) / 4096) ** 0.5 + 2 * 21 / 3 / 4096
        assert abs(rounded.mean().item() - value) <= width * likely
    assert nearest.item() in (low, high)
    assert torch.tensor((low + high) / 2).to(dtype).item() in (low, high), "no other number lies between"


@pytest.mark.parametrize("dtype", HALVES)
def test_what_can_be_represented_stays(dtype):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).float()
    rounded = rounded_at_random(every, dtype, torch.Generator().manual_seed(0)).float()
    assert torch.equal(torch.nan_to_num(every, nan=7.0), torch.nan_to_num(rounded, nan=7.0))


def way(method, dtype, steps=300, lr=1e-5):
    """How far σ₁ goes in these steps when nothing else moves it."""
    torch.manual_seed(0)
    network = nn.Linear(64, 64, bias=False)
    with torch.no_grad():
        network.weight.mul_(3)
    network.to(dtype)
    optimizer = torch.optim.SGD(resting(network).parameters(), lr=lr)
    method(network).attach(optimizer)
    before = torch.linalg.matrix_norm(network.weight.detach().double(), 2)
    for _ in range(steps):
        optimizer.step()
    return (torch.linalg.matrix_norm(network.weight.detach().double(), 2) - before).item()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_small_pulls_add_up_as_in_single_precision(dtype):
    def method(network):
        return SpectralRegularizer(network, decoupled=True, power_iterations=3)

    exact = way(method, torch.float32)
    assert exact < -0.05
    assert way(method, dtype) == pytest.approx(exact, rel=0.1)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(
    "method",
    [
        lambda network: ShrinkAndPerturb(network, 1e-5, perturb=0.0),
        lambda network: ShrinkAndPerturb(network, 1.0, perturb=0.0, variant="step-noise"),
    ],
)
def test_so_do_other_small_changes(method, dtype):
    exact = way(method, torch.float32)
    assert exact < -1e-3
    assert way(method, dtype) == pytest.approx(exact, rel=0.3)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("method", [L2Regularizer, ParsevalRegularizer, SpectralRegularizer])
def test_additions_to_gradients_that_are_far_larger_are_right_on_average(method, dtype):
    added = {}
    for kind in (torch.float32, dtype):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 1, bias=False)).to(kind)
        regularizer = method(network, 1e-5)
        total = torch.zeros(64, 64, dtype=torch.float64)
        for _ in range(200):
            network[0].weight.grad = torch.full((64, 64), 0.1).to(kind)
            start = network[0].weight.grad.double()
            regularizer.before_step()
            total += network[0].weight.grad.double() - start
        added[kind] = total / 200
    exact = added[torch.float32]
    assert exact.norm() > 0
    assert (added[dtype] * exact).sum() / exact.square().sum() == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_projected_norm_does_not_drift(dtype):
    torch.manual_seed(0)
    network = nn.Linear(64, 64, bias=False).to(dtype)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    NormalizeAndProject(network).attach(optimizer)
    norm = network.weight.detach().double().norm().item()
    for step in range(100):
        network.weight.grad = torch.randn(64, 64, generator=torch.Generator().manual_seed(step)).to(dtype)
        optimizer.step()
    assert network.weight.detach().double().norm().item() == pytest.approx(norm, rel=1e-3)


@every_case
def test_a_resumed_run_gives_the_same_bits_and_the_global_random_numbers_are_left_alone(case, tmp_path):
    def begin():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).to(torch.bfloat16)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.02)
        return network, optimizer, build(case, network).attach(optimizer)

    def train(network, optimizer, steps):
        for step in steps:
            x = torch.randn(12, 4, generator=torch.Generator().manual_seed(step)).to(torch.bfloat16)
            optimizer.zero_grad()
            network(x).square().mean().backward()
            optimizer.step()

    parts = begin()
    before = torch.get_rng_state()
    train(*parts[:2], range(6))
    assert torch.equal(before, torch.get_rng_state())
    torch.save([part.state_dict() for part in parts], tmp_path / "state.pt")
    train(*parts[:2], range(6, 12))
    resumed = begin()
    for part, state in zip(resumed, torch.load(tmp_path / "state.pt"), strict=True):
        part.load_state_dict(state)
    train(*resumed[:2], range(6, 12))
    assert all(torch.equal(a, b) for a, b in zip(parts[0].parameters(), resumed[0].parameters(), strict=True))
