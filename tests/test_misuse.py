"""What people do to a network, its optimizer and a method: each does the right thing or says what is wrong."""

import copy

import pytest
import torch
from torch import nn

from oracles.plain_loop import adam, assert_same, batches, mean_square, mlp, spectral, train_by_hand
from supple import (
    ContinualBackprop,
    L2InitRegularizer,
    L2Regularizer,
    ReDo,
    SelfNormalizedResets,
    SpectralNormRegularizer,
    SpectralRegularizer,
)
from support.resting import resting


def sgd(network, lr=0.1):
    return torch.optim.SGD(network.parameters(), lr=lr)


def step(network, optimizer):
    optimizer.zero_grad()
    mean_square(network, batches(1)[0].to(next(network.parameters()))).backward()
    optimizer.step()


# Attaching.


def test_a_second_method_of_one_kind_is_refused_on_the_same_parameters():
    """As where a notebook's cell is run again."""
    network, alone = mlp(), mlp()
    optimizer, its = sgd(network), sgd(alone)
    spectral(network).attach(optimizer)
    spectral(alone).attach(its)
    with pytest.raises(RuntimeError, match=r"a second.*would add to the first: detach\(\)"):
        SpectralRegularizer(network, strength=0.5).attach(optimizer)
    step(network, optimizer)
    step(alone, its)
    assert_same(network, alone)


def test_methods_of_one_kind_share_a_network():
    """By parameters, each with a strength of its own; and kinds may be alike without being the same."""
    network = mlp()
    optimizer = sgd(network)
    L2Regularizer(network, strength=0.1, roles={"0.weight": None}).attach(optimizer)
    rest = {name: None for name, _ in network.named_parameters() if name != "0.weight"}
    L2Regularizer(network, strength=0.5, roles=rest).attach(optimizer)
    SpectralRegularizer(network).attach(optimizer)
    SpectralNormRegularizer(network).attach(optimizer)
    with pytest.raises(RuntimeError, match="one L2Regularizer"):
        L2Regularizer(network).attach(optimizer)


@pytest.mark.parametrize(
    "wrong", [lambda n, o: n, lambda n, o: [o], lambda n, o: torch.optim.lr_scheduler.StepLR(o, 1)]
)
def test_something_else_in_the_optimizers_place_is_named(wrong):
    network = mlp()
    wrong = wrong(network, sgd(network))
    with pytest.raises(TypeError, match=f"Optimizer, got {type(wrong).__name__}"):
        spectral(network).attach(wrong)


def test_a_frozen_network_can_be_attached_and_thawed():
    network, plain = mlp(), mlp()
    optimizer = sgd(network)
    network.requires_grad_(False)
    spectral(network).attach(optimizer)
    optimizer.step()
    assert_same(network, plain)
    resting(network.requires_grad_(True))
    optimizer.step()
    assert not torch.equal(network[0].weight, plain[0].weight)


# Where the network's parameters are others than before.


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("change", ["dtype", "load_state_dict"])
def test_attach_after_the_network_has_changed(change, decoupled):
    network, by_hand = mlp(), mlp()
    method = spectral(network, decoupled=decoupled)
    other = mlp().double() if change == "dtype" else spread_out()
    for module in (network, by_hand):
        module.to(next(other.parameters()).dtype).load_state_dict(other.state_dict())
    optimizer = adam(network)
    method.attach(optimizer)
    its = spectral(by_hand, decoupled=decoupled, power_iterations=1)
    its.load_state_dict(method.state_dict())
    inputs = [x.to(next(other.parameters()).dtype) for x in batches(4)]
    for x in inputs:
        optimizer.zero_grad()
        mean_square(network, x).backward()
        optimizer.step()
    train_by_hand(by_hand, its, adam(by_hand), inputs)
    assert_same(network, by_hand, rtol=1e-6, atol=1e-7)  # its vectors began in the wider type


def spread_out():
    network = mlp()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2.0)
    return network


def test_parameters_that_loading_replaced_are_named():
    network = mlp()
    method = spectral(network)
    old = sgd(network)
    network.load_state_dict(mlp().state_dict(), assign=True)
    with pytest.raises(ValueError, match=r"'0\.bias', which is new in the network.*assign=True"):
        method.attach(sgd(network))
    with pytest.raises(ValueError, match=r"'0\.bias', which is gone in the network"):
        method.attach(old)
    spectral(network).attach(sgd(network))


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("with_closure", [False, True])
def test_a_new_head_is_named_at_the_next_step_and_nothing_changed(decoupled, with_closure):
    network = mlp()
    optimizer = sgd(network)
    method = spectral(network, decoupled=decoupled).attach(optimizer)
    step(network, optimizer)
    network.head = nn.Linear(3, 2)
    optimizer.add_param_group({"params": network.head.parameters()})
    if not decoupled:
        before = copy.deepcopy(network)
    with pytest.raises(ValueError, match=r"'head\.bias', which is new in the network: build method and optimizer"):
        optimizer.step(lambda: 0.0) if with_closure else optimizer.step()
    if not decoupled:
        assert_same(network, before)
    remembered = method.detach().state_dict()
    grown = spectral(network, decoupled=decoupled)
    grown.load_state_dict({**grown.state_dict(), **remembered})  # as far as there is something to remember
    grown.attach(optimizer)
    step(network, optimizer)


def test_a_method_goes_on_with_a_grown_network_from_where_it_was():
    """What the new method remembers of the old parameters is taken from the old one."""
    network = mlp()
    method = L2InitRegularizer(network)
    first = network[0].weight.detach().clone()
    with torch.no_grad():
        network[0].weight.add_(1.0)
    network.append(nn.Linear(3, 2))
    grown = L2InitRegularizer(network)
    grown.load_state_dict({**grown.state_dict(), **method.state_dict()})
    assert torch.equal(grown.state_dict()["0.weight"]["initial"], first)


def test_parameters_that_came_by_way_of_the_meta_device_are_named():
    network = mlp()
    method = spectral(network)
    network.to("meta").to_empty(device="cpu")
    with pytest.raises(ValueError, match=r"new in the network.*to_empty\(\)"):
        method.attach(sgd(network))


def test_an_optimizers_own_loading_leaves_the_hooks():
    network, by_hand = mlp(), mlp()
    optimizer, its = adam(network), adam(by_hand)
    spectral(network).attach(optimizer)
    step(network, optimizer)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(network, optimizer)
    train_by_hand(by_hand, spectral(by_hand), its, 2 * [batches(1)[0]])
    assert_same(network, by_hand)


# Weights that are not finite.


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("power_iterations", [1, 3])
def test_singular_vectors_recover_when_the_weights_do(poison, decoupled, power_iterations):
    network = mlp()
    optimizer = sgd(network)
    method = spectral(network, decoupled=decoupled, power_iterations=power_iterations).attach(optimizer)
    saved = copy.deepcopy(network.state_dict())
    with torch.no_grad():
        network[0].weight[2, 1] = poison
    step(network, optimizer)
    assert not network[0].weight.isfinite().all()
    network.load_state_dict(saved)
    step(network, optimizer)
    assert all(parameter.isfinite().all() for parameter in network.parameters())
    for _ in range(30):
        method.penalty()
    expected = torch.linalg.matrix_norm(network[0].weight, ord=2)
    torch.testing.assert_close(method.spectral_norms()["0.weight"], expected, rtol=1e-3, atol=0)
    step(network, optimizer)
    assert all(parameter.isfinite().all() for parameter in network.parameters())
    assert method.penalty().isfinite()


def test_singular_vectors_recover_where_the_penalty_joins_the_loss():
    network = nn.Linear(4, 3)
    method, saved = SpectralRegularizer(network, 1.0), copy.deepcopy(network.state_dict())
    nn.init.constant_(network.weight, float("nan"))
    method.penalty()
    network.load_state_dict(saved)
    for _ in range(30):
        method.penalty()
    expected = torch.linalg.matrix_norm(network.weight.detach(), ord=2)
    torch.testing.assert_close(method.spectral_norms()["weight"], expected, rtol=1e-3, atol=0)


# Strengths.


def test_a_strength_under_a_schedule_is_assigned():
    network, by_hand = mlp(), mlp()
    optimizer = adam(network)
    method = spectral(network).attach(optimizer)
    expected, its = spectral(by_hand), adam(by_hand)
    for number, x in enumerate(batches(4)):
        method.strength = 0.1 * 0.5**number
        optimizer.zero_grad()
        mean_square(network, x).backward()
        optimizer.step()
        expected.strength = 0.1 * 0.5**number
        train_by_hand(by_hand, expected, its, [x])
    assert_same(network, by_hand)


# Units whose parameters are in two optimizers.


@pytest.mark.parametrize("kind", [ReDo, ContinualBackprop, SelfNormalizedResets])
def test_units_split_between_two_optimizers_are_named(kind):
    options = {"every": 2} if kind is ReDo else {}

    def network():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))

    split = network()
    before = copy.deepcopy(split)
    optimizer = sgd(split[:3])
    method = kind(split, **options)
    with pytest.raises(ValueError, match=r"units of '2' whole.*'2\.weight'.*and not \['4\.weight'\].*roles="):
        method.attach(optimizer)
    resting(split)
    for _ in range(3):
        optimizer.step()
    assert_same(split, before)
    assert method.steps == (), "not attached"

    left_out = network()
    first, _second = sgd(left_out[:3]), sgd(left_out[3:])
    method = kind(left_out, roles={"4.weight": None}, **options).attach(first)
    assert "one of its parameters is left out" in method.describe()
    frozen = network()
    frozen[4].requires_grad_(False)
    optimizer = sgd(frozen[:3])
    kind(frozen, **options).attach(optimizer)
    for module, its in ((left_out, first), (frozen, optimizer)):
        for x in batches(3):
            mean_square(module, x).backward()
            its.step()
