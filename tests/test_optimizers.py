"""The pure Adam against torch's class."""

import pytest
import torch

from supple.optimizers import adam, adam_moments, written_out

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


def stepped_by_torch(start, all_gradients, step_size=1e-2, **options):
    parameters = {name: value.clone().requires_grad_() for name, value in start.items()}
    optimizer = torch.optim.Adam(parameters.values(), lr=step_size, **options)
    for found in all_gradients:
        for name, parameter in parameters.items():
            parameter.grad = found[name].clone()
        optimizer.step()
    return {name: value.detach() for name, value in parameters.items()}


@pytest.mark.parametrize("members", [(), (3,)], ids=["lone", "stacked"])
def test_fused_adam_to_the_bit(members):
    start, all_gradients = tensors(*members), list(gradients(*members))
    found, expected = stepped(start, all_gradients), stepped_by_torch(start, all_gradients, fused=True)
    assert all(torch.equal(found[name], expected[name]) for name in SHAPES)
    assert not any(torch.equal(found[name], start[name]) for name in SHAPES)


@pytest.mark.parametrize("members", [(), (3,)], ids=["lone", "stacked"])
def test_adam_to_rounding(members):
    start, all_gradients = tensors(*members), list(gradients(*members))
    torch.testing.assert_close(
        stepped(start, all_gradients), stepped_by_torch(start, all_gradients, foreach=False), rtol=1e-6, atol=1e-6
    )


def test_members_step_as_they_would_alone():
    start, all_gradients = tensors(3), list(gradients(3))
    together = stepped(start, all_gradients)
    for member in range(3):
        alone = stepped(
            {name: value[member] for name, value in start.items()},
            [{name: value[member] for name, value in found.items()} for found in all_gradients],
        )
        torch.testing.assert_close(
            {name: value[member] for name, value in together.items()}, alone, rtol=1e-6, atol=1e-7
        )


def test_a_gradient_laid_out_otherwise():
    start, (found, *_) = tensors(3), list(gradients(3))
    turned = {name: value.movedim(0, -1).contiguous().movedim(-1, 0) for name, value in found.items()}
    assert not turned["weight"].is_contiguous()
    expected = stepped(start, [found])
    assert all(torch.equal(value, expected[name]) for name, value in stepped(start, [turned]).items())


def test_it_steps_in_place_and_counts():
    parameters = tensors()
    before = {name: value.data_ptr() for name, value in parameters.items()}
    moments = adam_moments(parameters)
    for found in gradients():
        adam(parameters, found, moments, 1e-3)
    assert {name: value.data_ptr() for name, value in parameters.items()} == before
    assert all(entry["step"] == STEPS for entry in moments.values())


@pytest.mark.parametrize("members", [(), (3,)], ids=["lone", "stacked"])
def test_written_out_it_is_the_same_to_rounding(members):
    start, all_gradients = tensors(*members), list(gradients(*members))
    parameters = {name: value.clone() for name, value in start.items()}
    moments = adam_moments(parameters)
    for found in all_gradients:
        for name, parameter in parameters.items():
            written_out(parameter, found[name], **moments[name], step_size=1e-2)
    torch.testing.assert_close(parameters, stepped(start, all_gradients), rtol=1e-6, atol=1e-6)
