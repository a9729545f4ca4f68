"""What methods that observe activations do where there are none, or where several layers receive them."""

import gc

import pytest
import torch
from torch import nn

from supple.mitigators import ContinualBackprop, ReDo, SelfNormalizedResets
from supple.mitigators.states import GLOBAL
from supple.network.units import find_units

METHODS = {
    "continual backprop": lambda network, **options: ContinualBackprop(network, 0.2, maturity=1, **options),
    "ReDo": lambda network, **options: ReDo(network, 0.9, every=2, **options),
    "self-normalized resets": lambda network, **options: SelfNormalizedResets(
        network, 0.1, patience=1, every=1, quiet=0.8, **options
    ),
}
every_method = pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
UNITS = [("body", "heads.0"), ("body", "heads.1")]
RATE = 0.01


class Heads(nn.Module):
    """A body with two heads, of which each task uses one."""

    def __init__(self):
        super().__init__()
        self.body, self.heads, self.task = nn.Linear(3, 8), nn.ModuleList(nn.Linear(8, 2) for _ in range(2)), 0

    def forward(self, x):
        return self.heads[self.task](self.body(x).relu())


def attached(network, make, **options):
    optimizer = torch.optim.SGD(network.parameters(), lr=RATE)
    return make(network, **options).attach(optimizer), optimizer


def step(network, optimizer, loss=lambda network: network(torch.randn(16, 3)).square().sum()):
    """Take a step; return which units of the body it has replaced."""
    optimizer.zero_grad()
    loss(network).backward()
    trained = network.body.weight.detach() - RATE * network.body.weight.grad
    optimizer.step()
    return (network.body.weight.detach() - trained).abs().amax(1) > 1e-6


def replaced(count, *arguments):
    return sum(int(step(*arguments).sum()) for _ in range(count))


@every_method
def test_units_are_left_alone_while_their_activations_go_elsewhere(make, recwarn):
    network = Heads()
    method, optimizer = attached(network, make)
    assert replaced(20, network, optimizer) > 0
    assert not recwarn
    network.task, before = 1, method.state[GLOBAL]["steps"].clone()
    assert replaced(20, network, optimizer) == 0
    assert "none of those of body" in str(recwarn.pop().message)
    assert not recwarn, "it is said once"
    assert (method.state[GLOBAL]["steps"] - before <= 1).all(), "steps without activations do not count"
    network.task = 0
    assert replaced(20, network, optimizer) > 0


@every_method
def test_an_evaluation_that_leaves_the_network_in_evaluation_mode_is_named(make):
    network = Heads()
    _, optimizer = attached(network, make)
    replaced(4, network, optimizer)
    network.eval()
    with pytest.warns(UserWarning, match=r"none of those of body .* Call train\(\) after an evaluation"):
        assert replaced(20, network, optimizer) == 0


@every_method
def test_what_was_seen_while_it_was_off_does_not_count_as_seen(make):
    network = Heads()
    method, optimizer = attached(network, make)
    replaced(4, network, optimizer)
    strength, method.strength = method.strength, 0.0
    replaced(2, network, optimizer)
    method.strength = strength
    network.eval()
    with pytest.warns(UserWarning, match="none of those of body"):
        replaced(1 if make is not METHODS["ReDo"] else 2, network, optimizer)


@every_method
def test_heads_that_take_turns_are_observed_in_turn_if_they_are_named(make, recwarn):
    network = Heads()
    _, optimizer = attached(network, make, units=UNITS)
    for task in (0, 1, 0):
        network.task, count = task, 0
        for _ in range(20):
            which = step(network, optimizer)
            count += which.sum()
            assert not network.heads[task].weight[:, which].any()
        assert count > 0
    assert not recwarn


@every_method
def test_all_layers_that_are_named_forget_a_new_unit(make):
    network, count = Heads(), 0
    _, optimizer = attached(network, make, units=UNITS)

    def loss(network):
        hidden = network.body(torch.randn(16, 3)).relu()
        return sum(head(hidden).square().sum() for head in network.heads)

    for _ in range(20):
        which = step(network, optimizer, loss)
        count += which.sum()
        assert not any(head.weight[:, which].any() for head in network.heads)
    assert count > 0


def test_chains_of_one_layer_are_one_group():
    network = Heads()
    (group,), _ = find_units(network, UNITS)
    assert [consumer.path for consumer in group.leaving] == ["heads.0", "heads.1"]
    with pytest.raises(ValueError, match=r"expected each chain once, got 'body' to 'heads.1' twice"):
        find_units(network, [*UNITS, UNITS[1]])
    network.norm = nn.LayerNorm(8)
    with pytest.raises(ValueError, match=r"the same norms after 'body' in all its chains, got others before 'heads.1'"):
        find_units(network, [UNITS[0], ("body", "norm", "heads.1")])


@every_method
def test_an_empty_batch_says_nothing_about_the_units(make):
    network = Heads()
    _, optimizer = attached(network, make)

    def nothing(network):
        return network(torch.randn(0, 3)).sum() + 0 * network.body.weight.sum()

    assert not any(step(network, optimizer, nothing).any() for _ in range(4))
    assert replaced(20, network, optimizer) > 0


def test_methods_that_are_dropped_leave_no_hooks():
    network = Heads()
    for _ in range(5):
        method, optimizer = attached(network, METHODS["ReDo"])
        replaced(2, network, optimizer)
        del method, optimizer
        gc.collect()
    kept = attached(network, METHODS["ReDo"])
    assert len(network.heads[0]._forward_pre_hooks) == 1
    assert replaced(20, network, kept[1]) > 0


class RandomDepth(nn.Module):
    """Skips blocks at random."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)) for _ in range(8))

    def forward(self, x):
        for block in self.blocks:
            x = x if torch.rand(()) < 0.5 else x + block(x)
        return x


def test_a_network_that_skips_layers_at_random_has_the_same_units_each_time():
    network, found = RandomDepth(), set()
    for seed in range(4):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found.add(tuple(group.name for group in find_units(network)[0]))
        assert torch.equal(torch.get_rng_state(), before)
    assert len(found) == 1
    assert found != {()}
