"""What the laboratory's tests of each optimizer leave out: Adam's two ways, and gradients as they may lie in memory."""

import pytest
import torch

from supple.training.optimizers import adam, adam_moments, written_out

SHAPES = {"weight": (7, 13), "bias": (7,), "gain": (1,)}
STEPS = 20


def tensors(*members):
    return {name: torch.randn(*members, *shape) for name, shape in SHAPES.items()}


def gradients(*members):
    """Of every size, some of them zero as those of a dead unit are."""
    for step in range(STEPS):
        found = {name: value * 10.0 ** (step % 7 - 4) for name, value in tensors(*members).items()}
        found["weight"][..., 0, :] = 0
        yield found


def stepped(start, all_gradients, step_size=1e-2, **options):
    parameters = {name: value.clone() for name, value in start.items()}
    moments = adam_moments(parameters)
    for found in all_gradients:
        adam(parameters, found, moments, step_size, **options)
    return parameters


def test_a_gradient_laid_out_otherwise():
    start, (found, *_) = tensors(3), list(gradients(3))
    turned = {name: value.movedim(0, -1).contiguous().movedim(-1, 0) for name, value in found.items()}
    assert not turned["weight"].is_contiguous()
    expected = stepped(start, [found])
    assert all(torch.equal(value, expected[name]) for name, value in stepped(start, [turned]).items())


@pytest.mark.parametrize("members", [(), (3,)], ids=["lone", "stacked"])
@pytest.mark.parametrize("options", [{}, {"beta2": 0.9}], ids=str)
def test_written_out_it_is_the_same_to_rounding(members, options):
    start, all_gradients = tensors(*members), list(gradients(*members))
    parameters = {name: value.clone() for name, value in start.items()}
    moments = adam_moments(parameters)
    for found in all_gradients:
        for name, parameter in parameters.items():
            written_out(parameter, found[name], **moments[name], step_size=1e-2, **options)
    torch.testing.assert_close(parameters, stepped(start, all_gradients, **options), rtol=1e-6, atol=1e-6)
