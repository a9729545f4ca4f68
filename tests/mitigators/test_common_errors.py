"""What every method refuses, and that nothing has changed then."""

import math
import re

import pytest
import torch
from torch import nn

from supple import NormalizeAndProject, Population, ShrinkAndPerturb
from supple.mitigators import Mitigator
from supple.mitigators.states import GLOBAL
from support.method_cases import SEED, build, every_case, mlp, same_state, sgd, tensors, where_taken


@every_case
@pytest.mark.parametrize("members", [None, 3])
def test_a_bad_strength_is_refused_and_nothing_changed(case, members):
    network = Population(mlp, range(members)) if members else mlp()
    method = build(case, network)
    before = method.strength
    bad = [-0.1, math.nan, math.inf, torch.ones(2), torch.ones(3, 1), torch.tensor(-0.1)]
    bad += [2 * method.largest_strength] if math.isfinite(method.largest_strength) else []
    bad += [torch.tensor([0.1, math.nan, 0.1]), torch.tensor([0.1, -0.1, 0.1])] if members else [torch.ones(1)]
    for strength in bad:
        with pytest.raises(ValueError, match=r"expected a.*strength.*got"):
            build(case, network, strength=strength)
        with pytest.raises(ValueError, match=r"expected a.*strength.*got"):
            method.strength = strength
    assert method.strength == before


@every_case
def test_a_method_is_built_outside_inference_mode(case):
    network = mlp()
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"outside torch.inference_mode\(\)"):
        build(case, network)


OTHER_ARCHITECTURES = {
    "members": lambda: Population(mlp, [0, 1]),
    "shape": lambda: nn.Sequential(nn.Linear(5, 9), *mlp()[1:3], nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3)),
    "names": lambda: nn.Sequential(mlp()),
    "missing": lambda: nn.Sequential(*mlp()[:-1]),
}


@every_case
@pytest.mark.parametrize("architecture", OTHER_ARCHITECTURES)
def test_a_state_of_another_architecture_is_refused_and_changes_nothing(case, architecture):
    method, other = build(case, mlp()), build(case, OTHER_ARCHITECTURES[architecture]())
    if shapes(method) == shapes(other) and not isinstance(method, NormalizeAndProject):
        pytest.skip("remembers nothing of the architecture")
    before = tensors(method)
    with pytest.raises(ValueError, match=r"expected (a|the) state"):
        method.load_state_dict(other.state_dict())
    assert same_state(before, tensors(method))


def shapes(method: Mitigator) -> dict[str, dict[str, torch.Size]]:
    entries = method.state_dict().items()
    return {name: {key: tensor.shape for key, tensor in entry.items()} for name, entry in entries}


DAMAGE = {
    "None": lambda tensor: None,
    "a list": lambda tensor: tensor.tolist(),
    "a number": lambda tensor: 3,
    "an array": lambda tensor: tensor.cpu().numpy(),
    "complex": lambda tensor: tensor + 0j,
    "floats": lambda tensor: tensor.float() + 0.5,
    "another shape": lambda tensor: tensor.new_zeros(2, *tensor.shape),
    "sparse": lambda tensor: tensor.to_sparse(),
    "meta": lambda tensor: tensor.to("meta"),
    "zeros": torch.zeros_like,
    "ones": torch.ones_like,
    "wide": lambda tensor: tensor.to(torch.int64) if tensor.dtype == torch.uint8 else tensor,
    "not finite": lambda tensor: tensor * math.nan if tensor.is_floating_point() else tensor,
    "differentiable": lambda tensor: nn.Parameter(tensor) if tensor.is_floating_point() else tensor,
}


def assert_taken_or_refused(method, state, name):
    before, refused = tensors(method), ""
    try:
        method.load_state_dict(state)
    except (TypeError, ValueError) as error:
        refused = str(error)
    if refused:
        assert re.search(rf"expected .*{re.escape(name)}.*, got .*: load", refused), refused
        assert same_state(before, tensors(method)), "nothing has changed"
        return
    for key, entry in method.state_dict().items():
        for part, tensor in entry.items():
            assert not tensor.requires_grad
            torch.testing.assert_close(tensor, state[key][part], check_dtype=False, rtol=0, atol=0, equal_nan=True)
    method.load_state_dict(method.state_dict())


@every_case
def test_a_damaged_state_is_taken_whole_or_refused_whole(case, make):
    """The last entry of each kind, in every way."""
    good = build(case, make("mlp")).state_dict()
    method = build(case, make("mlp", seed=1), **where_taken(case, seed=SEED))
    for wrong in (None, [], 3):
        assert_taken_or_refused(method, wrong, type(method).__name__)
    for wrong in (None, [], {"": torch.ones(1)}):
        assert_taken_or_refused(method, good | {"0.weight": wrong}, "0.weight")
    for key, name in {key: name for name, entry in good.items() for key in entry}.items():
        for damage in DAMAGE.values():
            assert_taken_or_refused(method, good | {name: good[name] | {key: damage(good[name][key])}}, key)


@every_case
def test_an_unknown_parameter_in_roles_is_named(case):
    with pytest.raises(ValueError, match=r"0\.weigth.*did you mean '0\.weight'"):
        build(case, mlp(), roles={"0.weigth": None})


@every_case
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_network_that_is_not_finite_is_refused(case, value):
    network = mlp()
    with torch.no_grad():
        network[3].weight[1, 2] = value
    with pytest.raises(ValueError, match=r"not finite in '3\.weight'.*initialize or load"):
        build(case, network)


@every_case
def test_a_network_without_values_is_refused(case):
    with torch.device("meta"):
        network = mlp()
    with pytest.raises(ValueError, match=r"meta device.*'0\.weight'.*initialize or load"):
        build(case, network)


@every_case
@pytest.mark.parametrize("wrong", [lambda n: n.parameters(), sgd, lambda n: n.state_dict(), lambda n: "network"])
def test_something_else_in_the_networks_place_is_named(case, wrong):
    wrong = wrong(mlp())
    with pytest.raises(TypeError, match=f"expected a module.*got {type(wrong).__name__}: pass the network itself"):
        build(case, wrong)


@every_case
@pytest.mark.parametrize("wrong", ["0.1", mlp()])
def test_a_strength_that_is_no_number_is_named(case, wrong):
    with pytest.raises(TypeError, match="expected a number or a tensor as strength"):
        build(case, mlp(), strength=wrong)


def test_a_random_state_that_torch_refuses_changes_no_member():
    method, other = (ShrinkAndPerturb(Population(lambda: nn.Linear(2, 2), seeds)) for seeds in ([0, 1], [5, 6]))
    state, before = method.state_dict(), method.state_dict()
    state[GLOBAL]["random"] = other.state_dict()[GLOBAL]["random"]
    state[GLOBAL]["random"][1] = 255
    with pytest.raises(ValueError, match="the state of a random generator in /random, got one that torch refuses"):
        method.load_state_dict(state)
    assert torch.equal(method.state_dict()[GLOBAL]["random"], before[GLOBAL]["random"])
