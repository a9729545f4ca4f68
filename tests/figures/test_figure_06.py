"""The exact examples against the paper's own matrices."""

import pytest
import torch

from supple.figures import figure_06
from supple.figures.figure_06 import FIGURE, STEP_SIZES, continual_loss, loss, solution, steps_to_learn


@pytest.mark.parametrize("c", [0.5, 1.0, 3.0])
def test_the_gradients_of_equation_1(c):
    w1, w2 = (weights.requires_grad_() for weights in solution(torch.tensor(c, dtype=torch.float64)))
    x = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    g1, g2 = torch.autograd.grad(loss(w1, w2, x, torch.zeros(1)), (w1, w2))
    assert torch.allclose(g1, torch.tensor([[0, 1 / c], [0, 0]], dtype=torch.float64))
    assert torch.allclose(g2, torch.tensor([c, 0], dtype=torch.float64))


@pytest.mark.parametrize("c", [0.5, 1.0, 3.0])
def test_every_solution_fits_and_has_the_spectral_norm_that_is_said(c):
    w1, w2 = solution(torch.tensor(c, dtype=torch.float64))
    inputs = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    assert loss(w1, w2, inputs, torch.ones(2)) < 1e-20
    assert torch.allclose(torch.linalg.svdvals(w1), torch.tensor([c + 1 / c, 0], dtype=torch.float64), atol=1e-12)


def test_the_smallest_norm_alone_learns_at_every_step_size():
    c = torch.tensor([1.0, 16.0], dtype=torch.float64)
    losses = torch.stack([continual_loss(c, step_size) for step_size in STEP_SIZES])
    assert losses[:, 0].max() < 0.1
    assert losses[:, 1].max() > 0.2


def test_many_networks_at_once_are_each_alone(monkeypatch):
    monkeypatch.setattr(figure_06, "TASKS", 3)
    c = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    together = continual_loss(c, 0.03)
    assert torch.allclose(together, torch.stack([continual_loss(each, 0.03) for each in c]))


def test_steps_grow_with_the_logarithm_of_the_condition_number():
    a = torch.tensor([1e-2, 1e-4, 1e-6], dtype=torch.float64)
    steps = steps_to_learn(a, 0.1)
    # While small, both weights grow by the factor 1 + step size each step.
    expected = torch.full((2,), 4.60517 / torch.tensor(1.1).log().item(), dtype=torch.float64)
    assert torch.allclose(steps.diff(), expected, atol=1.5)


def test_it_needs_no_runs(monkeypatch):
    monkeypatch.setattr(figure_06, "STEP_SIZES", STEP_SIZES[-2:])  # small steps take many
    assert FIGURE.runs("paper", 10) == []
    chart = FIGURE.draw(lambda runs: pytest.fail("no rows are needed"), "quick", 1).to_dict()
    assert len(chart["vconcat"][0]["hconcat"]) == 2
