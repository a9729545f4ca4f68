"""The pure steps against torch's classes."""

import sys
from pathlib import Path

import pytest
import torch

from supple.training import optimizers as module
from supple.training.optimizers import OPTIMIZERS, NetworkOptimizer, unfused_adam
from support.modules import module_at

SHAPES = {"weight": (7, 13), "bias": (7,), "gain": (1,), "kernel": (3, 2, 3, 3), "middle": (9, 7), "head": (4, 9)}
HIDDEN = ("weight", "kernel", "middle")
"""What Muon is for: all matrices but the head, and kernels of convolutions."""
STEPS = 20
MEMBERS = 3


def tensors():
    return {name: torch.randn(MEMBERS, *shape) for name, shape in SHAPES.items()}


@pytest.fixture
def gradients():
    """Of every size, some of them zero as those of a dead unit are."""
    made = [{name: value * 10.0 ** (step % 7 - 4) for name, value in tensors().items()} for step in range(STEPS)]
    for each in made:
        each["weight"][:, 0] = 0
    return made


def stepped(name, start, gradients, step_size=1e-2):
    parameters, optimizer = {key: value.clone() for key, value in start.items()}, OPTIMIZERS[name]
    moments = optimizer.moments(parameters)
    for each in gradients:
        optimizer.step(parameters, {key: value.clone() for key, value in each.items()}, moments, step_size)
    return parameters, moments


def torchs(name, parameters, step_size, fused):
    """The optimizers that torch has for one network."""
    if name == "sgd":
        return [torch.optim.SGD(parameters.values(), lr=step_size)]
    if name != "muon":
        betas = {"adam-equal-betas": (0.9, 0.9), "adam-0-0.99": (0.0, 0.99), "adamw-0-0.9999": (0.0, 0.9999)}
        made = torch.optim.AdamW if name == "adamw-0-0.9999" else torch.optim.Adam
        decay = 0.1 if name == "adamw-0-0.9999" else 0.0
        beta = betas.get(name, (0.9, 0.999))
        return [made(parameters.values(), lr=step_size, betas=beta, weight_decay=decay, fused=fused)]
    hidden = [parameters[key] for key in HIDDEN]
    others = [parameter for key, parameter in parameters.items() if key not in HIDDEN]
    return [
        torch.optim.Muon(hidden, lr=step_size, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.Adam(others, lr=step_size, fused=fused),
    ]


def stepped_by_torch(name, start, gradients, member, step_size=1e-2, fused=True):
    """One member, by torch's own classes; a kernel as a matrix with a row for each output channel."""
    parameters = {
        key: value[member].clone().view(len(value[member]), -1).squeeze(-1).requires_grad_()
        for key, value in start.items()
    }
    optimizers = torchs(name, parameters, step_size, fused)
    for each in gradients:
        for key, parameter in parameters.items():
            parameter.grad = each[key][member].reshape(parameter.shape).clone()
        for optimizer in optimizers:
            optimizer.step()
    return {key: value.detach().view(SHAPES[key]) for key, value in parameters.items()}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_member_steps_as_with_torch(name, gradients):
    start = tensors()
    found, _ = stepped(name, start, gradients)
    for member in range(MEMBERS):
        expected = stepped_by_torch(name, start, gradients, member)
        for key in SHAPES:
            # Vector instructions end at other places in a stack, which Adam's fused kernel shows in the last bit.
            torch.testing.assert_close(found[key][member], expected[key], rtol=1e-6, atol=1e-7)
            assert not torch.equal(found[key][member], start[key][member])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_lone_member_steps_to_the_bit(name, gradients):
    start = {key: value[:1] for key, value in tensors().items()}
    found, _ = stepped(name, start, [{key: value[:1] for key, value in each.items()} for each in gradients])
    expected = stepped_by_torch(name, start, gradients, 0)
    assert all(torch.equal(found[key][0], expected[key]) for key in SHAPES)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_optimizer_of_one_network_steps_to_the_bit(name, gradients):
    start = {key: value[:1] for key, value in tensors().items()}
    parameters = {key: value[0].clone().requires_grad_() for key, value in start.items()}
    optimizer = NetworkOptimizer(parameters.values(), OPTIMIZERS[name], 1e-2)
    for each in gradients:
        for key, parameter in parameters.items():
            parameter.grad = each[key][0].clone()
        optimizer.step()
    expected = stepped_by_torch(name, start, gradients, 0)
    assert all(torch.equal(parameters[key], expected[key]) for key in SHAPES)
    for parameter in parameters.values():  # methods find the moments of a parameter in its own shape
        assert all(value.shape in (parameter.shape, ()) for value in optimizer.state[parameter].values())


def test_adam_as_the_formula_has_it(gradients):
    start = tensors()
    found, _ = stepped("adam", start, gradients)
    for key in SHAPES:
        parameter = start[key].double()
        mean, square = torch.zeros_like(parameter), torch.zeros_like(parameter)
        for step, each in enumerate(gradients, 1):
            mean = 0.9 * mean + 0.1 * each[key]
            square = 0.999 * square + 0.001 * each[key].double() ** 2
            corrected = (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
            parameter = parameter - 1e-2 * corrected
        torch.testing.assert_close(found[key], parameter.float(), rtol=1e-5, atol=1e-6)


def test_a_gradient_laid_out_otherwise(gradients):
    start = tensors()
    turned = {key: value.movedim(0, -1).contiguous().movedim(-1, 0) for key, value in gradients[0].items()}
    assert not turned["weight"].is_contiguous()
    (expected, _), (found, _) = (stepped("adam", start, [given]) for given in (gradients[0], turned))
    assert all(torch.equal(value, expected[key]) for key, value in found.items())


@pytest.mark.parametrize(
    ("name", "options"),
    [("adam", {}), ("adam-equal-betas", {"beta2": 0.9}), ("adam-0-0.99", {"beta1": 0.0, "beta2": 0.99})],
)
def test_unfused_adam_it_is_the_same_to_rounding(name, options, gradients):
    start = tensors()
    parameters = {key: value.clone() for key, value in start.items()}
    moments = OPTIMIZERS[name].moments(parameters)
    for given in gradients:
        unfused_adam(parameters, given, moments, 1e-2, **options)
    torch.testing.assert_close(parameters, stepped(name, start, gradients)[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_steps_in_place(name, gradients):
    optimizer, parameters = OPTIMIZERS[name], tensors()
    moments = optimizer.moments(parameters)
    remembered = [value for entry in moments.values() for value in entry.values()]
    before = [value.data_ptr() for value in (*parameters.values(), *remembered)]
    for each in gradients:
        optimizer.step(parameters, each, moments, 1e-3)
    after = [value for entry in moments.values() for value in entry.values()]
    assert [value.data_ptr() for value in (*parameters.values(), *after)] == before
    assert moments.keys() == SHAPES.keys()
    assert all(entry["step"] == STEPS for entry in moments.values() if "step" in entry)


def test_muon_remembers_momentum_of_hidden_matrices_alone():
    moments = OPTIMIZERS["muon"].moments(tensors())
    assert {key for key, entry in moments.items() if entry.keys() == {"momentum_buffer"}} == set(HIDDEN)
    assert {key for key, entry in moments.items() if "exp_avg" in entry} == SHAPES.keys() - set(HIDDEN)


def test_muon_refuses_a_network_without_hidden_matrices():
    with pytest.raises(ValueError, match="expected a network with hidden weight matrices for the optimizer muon"):
        OPTIMIZERS["muon"].moments({key: tensors()[key] for key in ("bias", "head")})


def test_a_torch_without_a_function_for_muon_has_the_other_optimizers(monkeypatch, gradients):
    monkeypatch.setitem(sys.modules, "torch.optim._muon", None)
    optimizers = module_at(Path(module.__file__)).OPTIMIZERS
    for name in optimizers.keys() - {"muon"}:
        optimizers[name].step(start := tensors(), gradients[0], optimizers[name].moments(start), 1e-2)
    with pytest.raises(ValueError, match=r"^expected PyTorch 2\.9 or newer for the optimizer muon, got \d.*: install"):
        optimizers["muon"].moments(tensors())
