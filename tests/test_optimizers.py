"""The pure Adam against torch's class, and its two paths against each other; in a table of several, in lab."""

import pytest
import torch

from supple.optimizers import _adam_formula, adam, adam_moments

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


def stepped(start, all_gradients, step_size=1e-2):
    parameters = {name: value.clone() for name, value in start.items()}
    moments = adam_moments(parameters)
    for found in all_gradients:
        adam(parameters, found, moments, step_size)
    return parameters


def test_to_the_bit_with_torch():
    start, all_gradients = tensors(), list(gradients())
    found = stepped(start, all_gradients)
    expected = {name: value.clone().requires_grad_() for name, value in start.items()}
    optimizer = torch.optim.Adam(expected.values(), lr=1e-2, fused=True)
    for each in all_gradients:
        for name, parameter in expected.items():
            parameter.grad = each[name].clone()
        optimizer.step()
    assert all(torch.equal(found[name], expected[name]) for name in SHAPES)
    assert not any(torch.equal(found[name], start[name]) for name in SHAPES)


def test_a_gradient_laid_out_otherwise():
    start, (found, *_) = tensors(3), list(gradients(3))
    turned = {name: value.movedim(0, -1).contiguous().movedim(-1, 0) for name, value in found.items()}
    assert not turned["weight"].is_contiguous()
    expected = stepped(start, [found])
    assert all(torch.equal(value, expected[name]) for name, value in stepped(start, [turned]).items())


@pytest.mark.parametrize("members", [(), (3,)], ids=["lone", "stacked"])
def test_what_is_compiled_is_the_same_to_rounding(members):
    start, all_gradients = tensors(*members), list(gradients(*members))
    parameters = {name: value.clone() for name, value in start.items()}
    moments = adam_moments(parameters)
    for found in all_gradients:
        for name, parameter in parameters.items():
            _adam_formula(parameter, found[name], 1e-2, **moments[name])
    torch.testing.assert_close(parameters, stepped(start, all_gradients), rtol=1e-6, atol=1e-6)
    assert all(entry["step"] == STEPS for entry in moments.values())
