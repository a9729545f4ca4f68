"""A method on an optimizer's own step: hooks, closures, gradient scaling, parameter groups, errors."""

import contextlib
import copy
import gc
import subprocess
import sys
import warnings
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from oracles.regularizers import decoupled_step, spectral_gradients
from supple import L2InitRegularizer, L2Regularizer, Population, SpectralRegularizer
from supple.mitigators.states import GLOBAL
from support.resting import resting
from support.zoo import relative_error, spread

CONVERGED = 40
STRENGTH = 0.3


def make_network():
    torch.manual_seed(3)
    return spread(nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3)))


@pytest.fixture
def network():
    return make_network()


@pytest.fixture
def x():
    return torch.randn(16, 4)


def spectral(network, **options):
    return SpectralRegularizer(network, **{"strength": STRENGTH, "power_iterations": CONVERGED, **options})


def sgd(network, lr=0.1, **options):
    return torch.optim.SGD(network.parameters(), lr=lr, **options)


def step(optimizer, network, *closure):
    """Of a loss that asks for nothing, where none has left its gradients."""
    resting(network)
    return optimizer.step(*closure)


def values(network):
    return {name: parameter.detach().clone() for name, parameter in network.named_parameters()}


def assert_equal(first, second, **tolerance):
    for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b, **tolerance, msg=lambda m, name=name: f"{name}: {m}")


def state_of(method):
    """What it remembers of parameters, without its options."""
    return {name: entry for name, entry in method.state_dict().items() if name != GLOBAL}


def same_state(first, second):
    first, second = state_of(first), state_of(second)
    assert first.keys() == second.keys()
    return all(torch.equal(first[name][key], second[name][key]) for name in first for key in first[name])


def loss_of(network, x):
    return network(x).square().mean()


def test_a_step_applies_the_gradient_of_the_penalty(network, x):
    start = values(network)
    expected = spectral_gradients(network)
    optimizer = sgd(network)
    assert isinstance(spectral(network).attach(optimizer), SpectralRegularizer)
    loss = loss_of(network, x)
    loss.backward()
    plain = {name: parameter.grad.clone() for name, parameter in network.named_parameters()}
    optimizer.step()
    for name, parameter in network.named_parameters():
        wanted = start[name].double() - 0.1 * (plain[name].double() + STRENGTH * expected[name])
        assert relative_error(parameter, wanted) <= 1e-6, name


def test_each_step_advances_once():
    network = nn.Linear(30, 20)
    regularizer, by_hand = (SpectralRegularizer(resting(n)) for n in (network, copy.deepcopy(network)))
    before = regularizer.state_dict()
    optimizer = sgd(network, lr=0.0)
    regularizer.attach(optimizer)
    for _ in range(3):
        optimizer.step()
        by_hand.before_step()
        assert same_state(regularizer, by_hand)
    assert not torch.equal(before["weight"]["v"], regularizer.state_dict()["weight"]["v"])


def test_decoupled_steps_advance_once():
    network = resting(nn.Linear(30, 20))
    regularizer, by_hand = (SpectralRegularizer(network, decoupled=decoupled) for decoupled in (True, False))
    optimizer = sgd(network, lr=0.0)
    regularizer.attach(optimizer)
    before = regularizer.state_dict()
    for _ in range(3):
        optimizer.step()
        by_hand.before_step()
        network.zero_grad(set_to_none=False)
        assert same_state(regularizer, by_hand)
    assert not torch.equal(before["weight"]["v"], regularizer.state_dict()["weight"]["v"])


def test_detach_undoes_attach(network, x):
    other = copy.deepcopy(network)
    first, second = sgd(network), sgd(network)
    regularizer = spectral(network).attach(first).attach(second)
    state = state_of(regularizer)
    assert regularizer.detach() is regularizer
    plain = sgd(other)
    for n, optimizer in ((network, first), (other, plain), (network, second), (other, plain)):
        optimizer.zero_grad()
        loss_of(n, x).backward()
        optimizer.step()
    assert_equal(network, other, rtol=0, atol=0)
    assert all(torch.equal(state[name]["v"], entry["v"]) for name, entry in state_of(regularizer).items())
    regularizer.attach(first)
    first.step()
    with pytest.raises(AssertionError):
        assert_equal(network, other, rtol=0, atol=0)


@pytest.mark.parametrize("with_closure", [False, True])
def test_two_methods_compose(network, x, with_closure):
    start, gradients = values(network), spectral_gradients(network)
    optimizer = sgd(network)
    methods = [spectral(network), L2Regularizer(network, strength=0.7), L2InitRegularizer(network, strength=0.5)]
    for method in methods:
        method.attach(optimizer)
    optimizer.zero_grad()
    step(optimizer, network, *([lambda: torch.zeros(())] if with_closure else []))
    for name, parameter in network.named_parameters():
        old = start[name].double()
        wanted = old - 0.1 * (STRENGTH * gradients[name] + 2 * 0.7 * old)
        assert relative_error(parameter, wanted) <= 1e-6, name


def test_coupled_and_decoupled_together(network):
    optimizer = sgd(network)
    reference = copy.deepcopy(network)
    spectral(network, decoupled=True).attach(optimizer)
    L2Regularizer(network, strength=0.7).attach(optimizer)
    step(optimizer, network)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_(1 - 0.1 * 2 * 0.7)
    expected = decoupled_step(reference, STRENGTH, 0.1)
    for name, parameter in network.named_parameters():
        assert relative_error(parameter, expected[name]) <= 1e-5, name


# Closures.


@pytest.mark.parametrize("keyword", [False, True])
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_a_closure_is_the_same_step(x, kind, decoupled, keyword):
    networks = [make_network(), make_network()]
    optimizers = [kind(network.parameters(), lr=0.01) for network in networks]
    methods = [SpectralRegularizer(network, strength=STRENGTH, decoupled=decoupled) for network in networks]
    for method, optimizer in zip(methods, optimizers, strict=True):
        method.attach(optimizer)
    for _ in range(5):
        optimizers[0].zero_grad()
        loss_of(networks[0], x).backward()
        optimizers[0].step()

        def closure():
            optimizers[1].zero_grad()
            loss = loss_of(networks[1], x)
            loss.backward()
            return loss

        with torch.no_grad():
            expected = loss_of(networks[1], x)
        loss = optimizers[1].step(closure=closure) if keyword else optimizers[1].step(closure)
        torch.testing.assert_close(loss, expected)
        assert_equal(*networks, rtol=0, atol=0)
        assert same_state(*methods)


def test_a_closure_may_return_a_number_or_nothing(network):
    optimizer = sgd(network)
    spectral(network).attach(optimizer)
    assert step(optimizer, network, lambda: 2.0) == 2
    before = values(network)
    optimizer.zero_grad()
    assert step(optimizer, network, lambda: None) is None
    assert not torch.equal(before["0.weight"], network[0].weight)


def test_lbfgs_minimises_loss_plus_penalty(x):
    """Its line search works on loss and gradients together: they must belong to one function."""
    network, reference = make_network(), make_network()
    y = torch.randn(16, 3)
    calls = []
    regularizer = spectral(network)
    autograd = spectral(reference)
    options = {"lr": 0.5, "max_iter": 10, "line_search_fn": "strong_wolfe"}
    optimizer, plain = (torch.optim.LBFGS(n.parameters(), **options) for n in (network, reference))
    regularizer.attach(optimizer)

    def closure():
        calls.append(1)
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(network(x), y)
        loss.backward()
        return loss

    def written_out():
        plain.zero_grad()
        loss = nn.functional.mse_loss(reference(x), y) + autograd.penalty()
        loss.backward()
        return loss

    first = optimizer.step(closure)
    torch.testing.assert_close(first, plain.step(written_out))
    assert len(calls) > 3
    last = optimizer.step(closure)
    assert last < 0.7 * first
    plain.step(written_out)
    assert_equal(network, reference, rtol=1e-2, atol=1e-3)


class OfAnother(torch.optim.SGD):
    """An optimizer that is not torch's own."""

    def step(self, closure=None):
        return super().step(closure)


@pytest.mark.parametrize("kind", [torch.optim.LBFGS, OfAnother])
def test_an_optimizer_that_may_compare_losses_gets_the_sum(network, kind):
    """Of two methods, on a pruned network, of which the penalty is that of what is left."""
    prune.random_unstructured(network[0], "weight", 0.8)
    methods = [spectral(network), L2Regularizer(network, strength=0.7)]
    expected = sum(method.penalty().item() for method in methods)
    optimizer = kind(network.parameters(), lr=1e-9)
    for method in methods:
        method.attach(optimizer)
    resting(network)
    assert optimizer.step(lambda: torch.tensor(2.0)).item() == pytest.approx(2 + expected, rel=1e-5)


def test_an_optimizer_that_is_done_is_not_kept(network):
    """As where each task begins with a new one."""
    regularizer, optimizers = spectral(network), [sgd(network) for _ in range(3)]
    for optimizer in optimizers:
        regularizer.attach(optimizer)
        step(optimizer, network)
    assert regularizer.steps == (1, 1, 1)
    references, first = [weakref.ref(optimizer) for optimizer in optimizers], optimizers[0]
    del optimizer, optimizers
    gc.collect()
    assert [reference() is None for reference in references] == [False, True, True]
    assert regularizer.steps == (1,)
    before = values(network)
    step(first, network)
    assert not torch.equal(before["0.weight"], network[0].weight)
    assert regularizer.detach().steps == ()


def test_lbfgs_advances_once_for_each_call_of_the_closure():
    network = nn.Linear(30, 20)
    regularizer, by_hand = (SpectralRegularizer(network, strength=0.0) for _ in range(2))
    optimizer = torch.optim.LBFGS(network.parameters(), lr=1e-9, max_iter=3)
    regularizer.attach(optimizer)
    calls = []

    def closure():
        calls.append(1)
        optimizer.zero_grad()
        loss = network(torch.ones(1, 30)).square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        optimizer.step(closure)
    assert len(calls) > 1
    for _ in calls:
        by_hand.before_step()
    for name, entry in state_of(regularizer).items():
        torch.testing.assert_close(entry["v"], by_hand.state_dict()[name]["v"], rtol=1e-5, atol=1e-5)


# Gradients that other hands work on.


def test_accumulated_gradients_are_regularized_once(network, x):
    other = copy.deepcopy(network)
    optimizers = [sgd(network), sgd(other)]
    for n, optimizer in zip((network, other), optimizers, strict=True):
        spectral(n).attach(optimizer)
    loss_of(network, x).backward()
    for half in x.chunk(2):
        (loss_of(other, half) / 2).backward()
    for optimizer in optimizers:
        optimizer.step()
    assert_equal(network, other)


def test_clipping_before_the_step_clips_the_loss_alone(network, x):
    gradients, start = spectral_gradients(network), values(network)
    optimizer = sgd(network)
    spectral(network).attach(optimizer)
    (1000 * loss_of(network, x)).backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1e-4)
    optimizer.step()
    moved = torch.cat([(p - start[name]).flatten() for name, p in network.named_parameters()])
    pull = torch.cat([0.1 * STRENGTH * gradients[name].flatten() for name in start])
    assert (moved + pull).norm() <= 0.1 * 1.01e-4 + 1e-6 * pull.norm()


def test_an_optimizer_of_another_network_is_refused_also_after_a_step(network):
    other = torch.optim.SGD(copy.deepcopy(network).parameters(), lr=0.1)
    with pytest.raises(ValueError, match="expected an optimizer of this network's parameters"):
        spectral(network, decoupled=True).after_step(other)


@pytest.mark.parametrize("decoupled", [False, True])
def test_a_parameter_without_a_gradient_gets_none_and_is_left_alone(network, x, decoupled):
    """As torch's optimizers leave it."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    regularizer = spectral(network, decoupled=decoupled).attach(optimizer)
    state, before = state_of(regularizer), values(network)
    optimizer.zero_grad()
    optimizer.step()
    assert regularizer.steps == (0,)
    regularizer.before_step()
    regularizer.after_step(optimizer)
    assert all(torch.equal(before[name], parameter) for name, parameter in network.named_parameters())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(state[name]["v"], entry["v"]) for name, entry in state_of(regularizer).items())
    loss_of(network, x).backward()
    network[3].weight.grad = None
    optimizer.step()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is None) == torch.equal(before[name], parameter) == (name == "3.weight"), name


@pytest.mark.parametrize("decoupled", [False, True])
def test_a_gradient_of_zero_is_a_gradient(network, decoupled):
    optimizer = sgd(network)
    resting(network)
    optimizer.zero_grad(set_to_none=False)
    pulls, expected = spectral_gradients(network), decoupled_step(network, STRENGTH, 0.1)
    start = values(network)
    spectral(network, decoupled=decoupled).attach(optimizer)
    optimizer.step()
    for name, parameter in network.named_parameters():
        wanted = expected[name] if decoupled else start[name].double() - 0.1 * STRENGTH * pulls[name]
        assert relative_error(parameter, wanted) <= 1e-6, name


@pytest.mark.parametrize("decoupled", [False, True])
def test_frozen_parameters_are_left_alone_also_in_mid_run(network, x, decoupled):
    network[0].weight.requires_grad_(False)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    spectral(network, decoupled=decoupled).attach(optimizer)
    for frozen in (["0.weight"], ["0.weight", "3.weight", "1.bias"], ["1.bias"]):
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name not in frozen)
        before = values(network)
        optimizer.zero_grad()
        loss_of(network, x).backward()
        optimizer.step()
        for name, parameter in network.named_parameters():
            assert torch.equal(before[name], parameter) == (name in frozen), name


# torch.amp.GradScaler.

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd-fused": lambda p: torch.optim.SGD(p, lr=0.1, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adam-fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
}


def scaled_step(network, optimizer, scaler, x, unscale=False, factor=1.0):
    optimizer.zero_grad()
    scaler.scale(factor * loss_of(network, x)).backward()
    if unscale:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_scaled_gradients_give_the_same_steps(x, name, decoupled, unscale):
    """A fused optimizer is stepped with gradients that are still scaled."""
    networks = [make_network(), make_network()]
    optimizers = [OPTIMIZERS[name](network.parameters()) for network in networks]
    for network, optimizer in zip(networks, optimizers, strict=True):
        spectral(network, decoupled=decoupled).attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    for _ in range(5):
        scaled_step(networks[0], optimizers[0], scaler, x, unscale)
        optimizers[1].zero_grad()
        loss_of(networks[1], x).backward()
        optimizers[1].step()
    assert scaler.get_scale() > 2.0**10
    assert_equal(*networks, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_skipped_for_an_overflow_changes_nothing(network, x, name, decoupled):
    optimizer = OPTIMIZERS[name](network.parameters())
    spectral(network, decoupled=decoupled).attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    before = values(network)
    scaled_step(network, optimizer, scaler, x, factor=float("inf"))
    assert all(torch.equal(before[name], parameter) for name, parameter in network.named_parameters())
    scaled_step(network, optimizer, scaler, x)
    assert not any(torch.equal(before[name], parameter) for name, parameter in network.named_parameters())
    assert all(parameter.isfinite().all() for parameter in network.parameters())


# A step that raises an error, and is taken once more.


class Failing(torch.optim.SGD):
    """Raises an error in its first steps, after its closure: memory ran out, say."""

    failures = 2

    def step(self, closure=None):
        loss = None if closure is None else closure()
        if self.failures:
            self.failures -= 1
            raise MemoryError
        super().step()
        return loss


def until_it_steps(step, prepare=lambda: None):
    done = False
    while not done:
        prepare()
        with contextlib.suppress(MemoryError):
            step()
            done = True


def step_alone(network, optimizer, x):
    optimizer.zero_grad()
    loss_of(network, x).backward()
    until_it_steps(optimizer.step)


def step_with_scaler(network, optimizer, x):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer.zero_grad()
    scaler.scale(loss_of(network, x)).backward()
    until_it_steps(lambda: scaler.step(optimizer))
    scaler.update()


def step_with_closure(network, optimizer, x):
    optimizer.zero_grad()
    loss_of(network, x).backward()
    until_it_steps(lambda: optimizer.step(lambda: torch.zeros(())))


def all_again(network, optimizer, x, to_none=True):
    def backward():
        optimizer.zero_grad(set_to_none=to_none)
        loss_of(network, x).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)

    until_it_steps(optimizer.step, backward)


def all_again_in_closure(network, optimizer, x):
    def closure():
        optimizer.zero_grad()
        loss = loss_of(network, x)
        loss.backward()
        return loss

    until_it_steps(lambda: optimizer.step(closure))


@pytest.mark.parametrize(
    "loop",
    [
        step_alone,
        step_with_scaler,
        step_with_closure,
        all_again,
        lambda *parts: all_again(*parts, to_none=False),
        all_again_in_closure,
    ],
    ids=["step", "scaler", "closure", "backward", "backward in place", "backward in closure"],
)
def test_a_step_that_is_taken_once_more_is_one_step(x, loop):
    networks = [make_network(), make_network()]
    for network, failures in zip(networks, (0, 2), strict=True):
        optimizer = Failing(network.parameters(), lr=0.1)
        optimizer.failures = failures
        L2Regularizer(network, strength=0.5).attach(optimizer)
        L2InitRegularizer(network[0], strength=0.5).attach(optimizer)
        with torch.no_grad():
            network[0].weight.add_(0.1)
        loop(network, optimizer, x)
        loop(network, optimizer, -x)
    assert_equal(*networks, rtol=1e-6, atol=1e-7)


def test_a_backward_pass_after_an_error_asks_for_another_penalty(network, x):
    """Whether ``zero_grad()`` came before it can't be seen where it writes zeros in place."""
    optimizer = Failing(resting(network).parameters(), lr=0.1)
    L2Regularizer(network, strength=0.5).attach(optimizer)
    expected = {name: 3 * value for name, value in values(network).items()}
    until_it_steps(optimizer.step, lambda: (0 * loss_of(network, x)).backward())
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])


def test_scaled_gradients_of_a_population_with_its_own_strengths():
    populations = [Population(lambda: spread(nn.Linear(4, 3)), [0, 1]) for _ in range(2)]
    optimizers = [torch.optim.SGD(population.parameters(), lr=0.1, fused=True) for population in populations]
    for population, optimizer in zip(populations, optimizers, strict=True):
        SpectralRegularizer(population, strength=torch.tensor([0.0, 0.5])).attach(optimizer)
    x = torch.randn(2, 5, 4)
    scaled_step(populations[0], optimizers[0], torch.amp.GradScaler("cpu", init_scale=2.0**10), x)
    loss_of(populations[1], x).backward()
    optimizers[1].step()
    assert_equal(*populations, rtol=1e-5, atol=1e-6)


# Step sizes and groups.


def test_decoupled_uses_each_groups_own_step_size(network):
    expected = [decoupled_step(network, STRENGTH, lr) for lr in (0.01, 0.04)]
    groups = [
        {"params": network[0].parameters(), "lr": 0.01},
        {"params": [*network[1].parameters(), *network[3].parameters()], "lr": torch.tensor(0.04)},
    ]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    spectral(network, decoupled=True).attach(optimizer)
    step(optimizer, network)
    for name, parameter in network.named_parameters():
        assert relative_error(parameter, expected[not name.startswith("0.")][name]) <= 1e-6, name


def test_decoupled_follows_a_schedule(network):
    optimizer = sgd(network, lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.1)
    spectral(network, decoupled=True).attach(optimizer)
    for lr in (0.1, 0.01, 0.001):
        expected = decoupled_step(network, STRENGTH, lr)
        step(optimizer, network)
        scheduler.step()
        for name, parameter in network.named_parameters():
            assert relative_error(parameter, expected[name]) <= 1e-6, name


def test_decoupled_comes_after_the_step_and_leaves_the_gradients(network, x):
    optimizer, reference = sgd(network), copy.deepcopy(network)
    spectral(network, decoupled=True).attach(optimizer)
    plain = sgd(reference)
    for n, o in ((network, optimizer), (reference, plain)):
        loss_of(n, x).backward()
        o.step()
    expected = decoupled_step(reference, STRENGTH, 0.1)
    for (name, parameter), other in zip(network.named_parameters(), reference.parameters(), strict=True):
        assert relative_error(parameter, expected[name]) <= 1e-6, name
        assert torch.equal(parameter.grad, other.grad)


@pytest.mark.parametrize("decoupled", [False, True])
def test_decoupled_is_not_bent_by_adams_normalization(network, decoupled):
    """Without a loss, coupled through Adam every entry moves by lr whatever the strength; decoupled moves with it."""
    moves = []
    for strength in (0.01, 0.02):
        n = copy.deepcopy(network)
        optimizer = torch.optim.Adam(n.parameters(), lr=1e-3)
        spectral(n, strength=strength, decoupled=decoupled).attach(optimizer)
        n.zero_grad()
        loss_of(n, torch.zeros(1, 4)).mul(0).backward()
        optimizer.step()
        moves.append((n[0].weight - network[0].weight).norm().item())
    assert moves[1] / moves[0] == pytest.approx(2 if decoupled else 1, rel=1e-2)


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("with_closure", [False, True])
def test_a_network_split_between_two_optimizers(network, decoupled, with_closure):
    together = copy.deepcopy(network)
    optimizer = sgd(together)
    spectral(together, decoupled=decoupled).attach(optimizer)
    first = torch.optim.SGD(network[0].parameters(), lr=0.1)
    second = torch.optim.SGD([*network[1].parameters(), *network[3].parameters()], lr=0.1)
    spectral(network, decoupled=decoupled).attach(first).attach(second)
    closure = (lambda: 0.0) if with_closure else None
    before = values(network)
    step(first, network, closure)
    changed = [name for name, p in network.named_parameters() if not torch.equal(before[name], p)]
    assert changed == ["0.weight", "0.bias"], "each optimizer acts on its own"
    step(second, network, closure)
    step(optimizer, together)
    assert_equal(network, together, rtol=1e-6, atol=1e-7)


def test_a_split_networks_closure_returns_the_penalty_of_its_own_part(network):
    first = OfAnother(network[0].parameters(), lr=0.0)
    whole = spectral(network).attach(first)
    part = spectral(network[0])
    with torch.no_grad():
        expected = part.penalty().item()
        assert expected < 0.9 * whole.penalty().item()
    assert float(step(first, network, lambda: 0.0)) == pytest.approx(expected, rel=1e-5)


def test_parameters_of_others_in_the_optimizer_are_left_alone(network):
    other = spread(nn.Linear(3, 3))
    optimizer = torch.optim.SGD([*network.parameters(), *other.parameters()], lr=0.1)
    before = values(other)
    spectral(network).attach(optimizer)
    start = values(network)
    resting(other)
    step(optimizer, network)
    assert all(torch.equal(before[name], parameter) for name, parameter in other.named_parameters())
    assert not any(parameter.grad.any() for parameter in other.parameters())
    assert not torch.equal(start["0.weight"], network[0].weight), "it acts on its own"


@pytest.mark.parametrize("decoupled", [False, True])
def test_a_parameter_group_added_later(network, decoupled):
    optimizer = torch.optim.SGD(network[0].parameters(), lr=0.1)
    spectral(network, decoupled=decoupled).attach(optimizer)
    step(optimizer, network)
    before = values(network)
    optimizer.add_param_group({"params": network[3].parameters(), "lr": 0.05})
    step(optimizer, network)
    assert not torch.equal(before["3.weight"], network[3].weight)
    assert torch.equal(before["1.weight"], network[1].weight)


def test_strength_changed_between_steps_counts(network):
    optimizer = sgd(network)
    regularizer = spectral(network).attach(optimizer)
    regularizer.strength = 0.0
    before = values(network)
    step(optimizer, network)
    assert all(torch.equal(before[name], parameter) for name, parameter in network.named_parameters())
    regularizer.strength = 0.5
    step(optimizer, network)
    assert not torch.equal(before["0.weight"], network[0].weight)


def test_the_hook_leaves_an_optimizers_state_dict_alone(network, x):
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    spectral(network).attach(optimizer)
    loss_of(network, x).backward()
    optimizer.step()
    plain = torch.optim.Adam(network.parameters(), lr=0.1)
    plain.load_state_dict(optimizer.state_dict())


# Errors.


def test_attaching_twice_is_refused(network):
    optimizer = sgd(network)
    regularizer = spectral(network).attach(optimizer)
    with pytest.raises((ValueError, RuntimeError), match="detach"):
        regularizer.attach(optimizer)
    before = values(network)
    gradient = spectral_gradients(network)["0.weight"]
    step(optimizer, network)
    wanted = before["0.weight"].double() - 0.1 * STRENGTH * gradient
    assert relative_error(network[0].weight, wanted) <= 1e-6, "once, not twice"
    regularizer.detach().attach(optimizer)


def test_an_optimizer_of_other_parameters_is_refused(network):
    with pytest.raises(ValueError, match="none of"):
        spectral(network).attach(sgd(copy.deepcopy(network)))


def test_maximizing_is_refused(network):
    with pytest.raises(ValueError, match="maximize"):
        spectral(network).attach(sgd(network, maximize=True))


def test_maximizing_is_refused_in_a_group_added_later(network):
    optimizer = torch.optim.SGD(network[0].parameters(), lr=0.1)
    spectral(network).attach(optimizer)
    optimizer.add_param_group({"params": network[3].parameters(), "maximize": True})
    before = values(network)
    with pytest.raises(ValueError, match="maximize"):
        step(optimizer, network)
    assert all(torch.equal(before[name], parameter) for name, parameter in network.named_parameters())


def test_a_refused_optimizer_is_left_without_hooks(network):
    optimizer = sgd(network, maximize=True)
    with pytest.raises(ValueError, match="maximize"):
        spectral(network).attach(optimizer)
    before = values(network)
    step(optimizer, network)
    assert all(torch.equal(before[name], parameter) for name, parameter in network.named_parameters())


@pytest.mark.parametrize("with_closure", [False, True])
def test_a_sparse_gradient_is_named_and_changes_nothing(with_closure):
    network = nn.Sequential(nn.Linear(2, 2), nn.Embedding(5, 3, sparse=True))
    optimizer = sgd(network)
    regularizer = spectral(network).attach(optimizer)
    state, before = state_of(regularizer), values(network)
    network[1](torch.tensor([1, 2])).sum().backward()
    network[0].weight.grad = torch.ones_like(network[0].weight)
    attached = (lambda: optimizer.step(lambda: 0.0)) if with_closure else optimizer.step
    for attempt in (attached, regularizer.before_step):
        with pytest.raises((ValueError, RuntimeError), match=r"sparse.*1\.weight.*sparse=False"):
            attempt()
    assert all(torch.equal(before[name], parameter) for name, parameter in network.named_parameters())
    assert torch.equal(network[0].weight.grad, torch.ones_like(network[0].weight))
    assert network[0].bias.grad is None
    assert all(torch.equal(state[name]["v"], entry["v"]) for name, entry in state_of(regularizer).items())


def test_a_sparse_parameter_can_be_left_out():
    network = nn.Sequential(nn.Linear(2, 2), nn.Embedding(5, 3, sparse=True))
    optimizer = sgd(network)
    spectral(network, roles={"1.weight": None}).attach(optimizer)
    network[1](torch.tensor([1, 2])).sum().backward()
    before = values(network)
    step(optimizer, network)
    assert not torch.equal(before["0.weight"], network[0].weight)


# The library's own footprint.


def test_importing_the_library_imports_torch_alone():
    extras = [
        "altair",
        "datasets",
        "dm_control",
        "polars",
        "ray",
        "rich",
        "sklearn",
        "transformers",
        "tyro",
        "vl_convert",
    ]
    code = f"""
import sys
import torch
before = set(sys.modules)
import supple
added = {{name.partition('.')[0] for name in set(sys.modules) - before}}
assert not added & set({extras!r}), added
foreign = added - set(sys.stdlib_module_names) - {{'supple', 'torch', 'numpy'}}
assert not foreign, foreign
assert not any(name.startswith(('supple.lab', 'supple.runs', 'supple.cli')) for name in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("decoupled", [False, True])
def test_layers_may_take_turns_in_the_optimizer(decoupled):
    network = resting(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    blocks = [{**torch.optim.SGD(layer.parameters(), lr=0.1).param_groups[0]} for layer in network]
    optimizer = torch.optim.SGD(network[0].parameters(), lr=0.1)
    SpectralRegularizer(network, 0.1, decoupled=decoupled).attach(optimizer)
    for turn in (0, 1, 0):
        optimizer.param_groups = [blocks[turn]]
        before = [layer.weight.detach().clone() for layer in network]
        optimizer.step()
        changed = [not torch.equal(layer.weight, old) for layer, old in zip(network, before, strict=True)]
        assert changed == [turn == 0, turn == 1]


def test_an_optimizer_that_moves_some_parameters_beside_the_one_inside_it_is_refused(network):
    class Hybrid(torch.optim.Optimizer):
        def __init__(self, main, rest):
            super().__init__(main, {"lr": 0.1})
            self.inside = torch.optim.Adam(rest)

        def step(self, closure=None):
            self.inside.step()

    matrices = [parameter for parameter in network.parameters() if parameter.ndim == 2]
    hybrid = Hybrid(matrices, [parameter for parameter in network.parameters() if parameter.ndim < 2])
    method = spectral(resting(network), decoupled=True)
    before = values(network)
    for act in (method.attach, method.after_step):
        with pytest.raises(ValueError, match=r"whose inner optimizer lacks '0.weight'"):
            act(hybrid)
    assert all(torch.equal(before[name], parameter) for name, parameter in network.named_parameters())


def test_a_step_that_clears_the_gradients_warns_once_that_nothing_changed(network):
    class Clearing(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            self.zero_grad()

    optimizer = Clearing(network.parameters(), lr=0.1)
    spectral(network, decoupled=True).attach(optimizer)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(3):
            step(optimizer, network)
    messages = [str(warning.message) for warning in seen if "changed nothing" in str(warning.message)]
    assert len(messages) == 1
    assert "which parameters Clearing updated before it cleared them" in messages[0]
