"""Plain PyTorch: accumulation, clipping, schedules, autocast, compiled models and optimizers."""

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from oracles.plain_loop import (
    adam,
    assert_differs,
    assert_same,
    batches,
    copies,
    mean_square,
    mlp,
    spectral,
    train_by_hand,
)
from supple import (
    UPGD,
    ContinualBackprop,
    HareAndTortoise,
    NetworkReset,
    ReDo,
    SelfNormalizedResets,
    ShrinkAndPerturb,
    SpectralRegularizer,
)
from support.resting import resting

compiling = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
every_form = pytest.mark.parametrize("decoupled", [False, True])


@every_form
def test_accumulation_clipping_and_a_schedule(decoupled):
    network = mlp()
    by_hand, without = copies(network)
    optimizer = adam(network)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)
    spectral(network, decoupled=decoupled).attach(optimizer)
    for step, x in enumerate(batches(12), start=1):
        (mean_square(network, x) / 3).backward()
        if step % 3 == 0:
            nn.utils.clip_grad_norm_(network.parameters(), 0.05)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    for other, method in ((by_hand, spectral(by_hand, decoupled=decoupled)), (without, None)):
        optimizer = adam(other)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)
        train_by_hand(other, method, optimizer, batches(12), accumulate=3, clip=0.05, scheduler=scheduler)
    assert_same(network, by_hand)
    assert_differs(network, without)


def test_clipping_after_the_methods_gradient_is_a_loop_of_ones_own():
    """What attach does not do: before_step() first, then clip both together."""
    network = mlp()
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    before = copy.deepcopy(network)
    spectral(resting(network), strength=100.0).before_step()
    nn.utils.clip_grad_norm_(network.parameters(), 0.05)
    optimizer.step()
    moved = torch.cat([(a - b).flatten() for a, b in zip(network.parameters(), before.parameters(), strict=True)])
    assert moved.norm().item() == pytest.approx(0.05, rel=1e-3)


@every_form
@pytest.mark.parametrize("fused", [False, True])
def test_bfloat16_autocast(fused, decoupled):
    network = mlp()
    by_hand, without = copies(network)

    def loss_of(network, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return mean_square(network, x)

    optimizer = adam(network, fused=fused)
    spectral(network, decoupled=decoupled).attach(optimizer)
    for x in batches(5):
        optimizer.zero_grad()
        loss_of(network, x).backward()
        optimizer.step()
    train_by_hand(by_hand, spectral(by_hand, decoupled=decoupled), adam(by_hand, fused=fused), batches(5), loss_of)
    train_by_hand(without, None, adam(without, fused=fused), batches(5), loss_of)
    assert_same(network, by_hand)
    assert_differs(network, without)


@compiling
@every_form
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_compiled_model_and_optimizer_step_with_the_strength_under_a_schedule(backend, decoupled):
    if backend == "inductor" and decoupled:
        pytest.skip("compiled by one backend it is compiled by the other, and inductor takes its time")
    torch.compiler.reset()
    strengths = [0.1, 0.1, 0.05, 0.02, 0.0, 0.3]
    network = mlp()
    by_hand, _ = copies(network)
    optimizer = adam(network, lr=torch.tensor(0.01))
    method = spectral(network, decoupled=decoupled).attach(optimizer)
    forward = torch.compile(network, backend="eager")
    counter = CompileCounterWithBackend(backend)
    step = torch.compile(optimizer.step, backend=counter)
    counters.clear()
    graphs = []
    expected = spectral(by_hand, decoupled=decoupled)
    optimizer_by_hand = adam(by_hand)
    for strength, x in zip(strengths, batches(6), strict=True):
        method.strength = torch.tensor(strength)  # a tensor is an input of the compiled step, a number part of it
        optimizer.zero_grad()
        mean_square(forward, x).backward()
        step()
        graphs.append(counter.frame_count)
        expected.strength = strength
        train_by_hand(by_hand, expected, optimizer_by_hand, [x])
    assert_same(network, by_hand, rtol=1e-4, atol=1e-5)
    assert graphs == [2] * 6  # the optimizer and the method
    (reason,) = counters["graph_break"]
    assert "Call to `torch._dynamo.graph_break()`" in reason  # torch's own, around every optimizer's step


@compiling
def test_a_number_as_strength_in_a_compiled_step_counts_too():
    torch.compiler.reset()
    network = mlp()
    by_hand, _ = copies(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    method = spectral(network).attach(optimizer)
    step = torch.compile(optimizer.step, backend="eager")
    expected, optimizer_by_hand = spectral(by_hand), torch.optim.SGD(by_hand.parameters(), lr=0.1)
    for strength, x in zip([0.1, 0.2, 0.0, 0.3], batches(4), strict=True):
        method.strength = expected.strength = strength
        optimizer.zero_grad()
        mean_square(network, x).backward()
        step()
        train_by_hand(by_hand, expected, optimizer_by_hand, [x])
    assert_same(network, by_hand, rtol=1e-5, atol=1e-6)


@compiling
@every_form
def test_a_compiled_step_follows_what_is_frozen_and_thawed(decoupled):
    torch.compiler.reset()
    network = mlp()
    eager, _ = copies(network)
    for each in (network, eager):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.1)
        SpectralRegularizer(each, 0.3, decoupled=decoupled).attach(optimizer)
        step = torch.compile(optimizer.step, backend="eager") if each is network else optimizer.step
        first = next(module for module in each.modules() if isinstance(module, nn.Linear))
        for number, x in enumerate(batches(8)):
            first.requires_grad_(number in (3, 4, 7))
            optimizer.zero_grad()
            mean_square(each, x).backward()
            step()
    assert_same(network, eager, rtol=1e-5, atol=1e-6)


ACTING_OUTSIDE = {
    "ReDo": lambda network: ReDo(network, 0.9, every=2),
    "continual backprop": lambda network: ContinualBackprop(network, 0.2, maturity=1),
    "self-normalized resets": lambda network: SelfNormalizedResets(network, 0.5, patience=1, quiet=1.0, every=1),
    "network reset": lambda network: NetworkReset(network, every=3),
    "hare and tortoise": lambda network: HareAndTortoise(network, every=2),
    "UPGD": UPGD,
    "shrink and perturb": lambda network: ShrinkAndPerturb(network, 0.01),
}


class TwoHeads(nn.Module):
    """Only the first head is trained: it and the idle one receive the same units."""

    def __init__(self):
        super().__init__()
        self.body, self.used, self.idle = nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(8, 2)

    def forward(self, x):
        h = self.body(x).relu()
        return self.used(h), self.idle(h)


@compiling
def test_units_that_feed_an_idle_head_are_reset_in_a_compiled_step_of_ones_own():
    torch.compiler.reset()
    network = TwoHeads()
    eager, plain = copies(network)
    for each, compiled, acts in ((network, True, True), (eager, False, True), (plain, False, False)):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.1)
        method = ReDo(each, 0.9, every=2)
        method.observe()

        def act(method=method, optimizer=optimizer):
            method.after_step(optimizer)

        after = torch.compile(act, backend="eager") if compiled else act
        for number in range(6):
            optimizer.zero_grad()
            each(torch.linspace(-1, 1, 48).view(12, 4).roll(number, 0))[0].square().mean().backward()
            optimizer.step()
            if acts:
                after()
    assert_same(network, eager)
    assert not torch.equal(network.body.weight, plain.body.weight)


@compiling
@pytest.mark.parametrize("name", ACTING_OUTSIDE)
def test_methods_that_cannot_be_compiled_act_outside_a_compiled_step(name):
    torch.compiler.reset()
    network = mlp()
    eager, plain = copies(network)
    for each, compiled, acts in ((network, True, True), (eager, False, True), (plain, False, False)):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.1)
        if acts:
            ACTING_OUTSIDE[name](each).attach(optimizer)
        step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
        for x in batches(6):
            optimizer.zero_grad()
            mean_square(each, x).backward()
            step()
    assert_same(network, eager, rtol=1e-6, atol=1e-7)
    assert_differs(network, plain)


def parametrized(kind):
    network = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    getattr(nn.utils.parametrizations, kind)(network[2])
    return network


@pytest.mark.parametrize("kind", ["weight_norm", "orthogonal", "spectral_norm"])
def test_parametrized_layers(kind):
    """What the weight is computed from is left to the loss; the other layers are regularized."""
    torch.manual_seed(1)
    network = parametrized(kind)
    without = parametrized(kind)
    by_hand = parametrized(kind)
    for other in (by_hand, without):
        other.load_state_dict(network.state_dict())
    optimizer = adam(network)
    regularizer = spectral(network).attach(optimizer)
    assert not any("parametrizations" in name for name in regularizer.parameters)
    assert "0.weight" in regularizer.parameters
    for x in batches(5):
        optimizer.zero_grad()
        mean_square(network, x).backward()
        optimizer.step()
    train_by_hand(by_hand, spectral(by_hand), adam(by_hand), batches(5))
    train_by_hand(without, None, adam(without), batches(5))
    assert_same(network, by_hand)
    assert_differs(network, without)


def test_layers_parametrized_after_the_method_was_built_are_named():
    network = mlp()
    regularizer = SpectralRegularizer(network)
    nn.utils.parametrizations.weight_norm(network[0])
    with pytest.raises(ValueError, match=r"0\.parametrizations\.weight\.original0.*new in the network"):
        regularizer.attach(adam(network))
