"""A parameter without a gradient is left exactly as it is, by every method: so that idle heads rest."""

import copy

import pytest
import torch
from torch import nn

from supple import ContinualBackprop, HareAndTortoise, NetworkReset, ReDo
from supple.mitigators.states import GLOBAL
from support.method_cases import CASES, build, every_case, every_case_that_acts_in_steps, tensors


class Heads(nn.Module):
    """A body with two heads, of which one is used."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
        self.heads = nn.ModuleList([nn.Linear(8, 3), nn.Linear(8, 3)])

    def forward(self, x, task: int = 0):
        return self.heads[task](self.body(x))


def train(network, optimizer, steps=9, task=0):
    for step in range(steps):
        x = torch.randn(12, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        network(x, task).square().mean().backward()
        optimizer.step()


@every_case
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_an_unused_head_keeps_its_bits_and_its_optimizers_state(case, kind):
    torch.manual_seed(0)
    network = Heads()
    before = copy.deepcopy(network)
    optimizer = kind(network.parameters(), lr=0.05, weight_decay=0.1)
    method = build(case, network).attach(optimizer)
    train(network, optimizer)
    for old, new in zip(before.heads[1].parameters(), network.heads[1].parameters(), strict=True):
        assert torch.equal(old, new)
        assert new.grad is None
        assert not optimizer.state.get(new)
    assert not torch.equal(before.body[0].weight, network.body[0].weight)
    assert all(tensor.isfinite().all() for tensor in tensors(method))


@every_case_that_acts_in_steps
@pytest.mark.filterwarnings("ignore:expected activations of all units that are trained")  # head 1 gets them now
def test_it_acts_on_a_head_from_when_it_is_used(case):
    torch.manual_seed(0)
    plain, network = Heads(), Heads()
    network.load_state_dict(plain.state_dict())
    for module in (plain, network):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
        if module is network:
            build(case, module).attach(optimizer)
        train(module, optimizer, 3)
        train(module, optimizer, 9, task=1)
    assert not all(torch.equal(a, b) for a, b in zip(plain.parameters(), network.parameters(), strict=True))


@every_case
def test_a_step_in_which_nothing_has_a_gradient_changes_nothing(case):
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    before = copy.deepcopy(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    method = build(case, network).attach(optimizer)
    for _ in range(9):
        method.before_step()
        optimizer.step()
        method.after_step(optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), network.parameters(), strict=True))
    assert method.steps == (0,)


@pytest.mark.parametrize(
    ("method", "options", "count"),
    [
        (HareAndTortoise, {"every": 100}, lambda state: int(state[GLOBAL]["heads.1.weight"])),
        (NetworkReset, {"every": 100}, lambda state: int(state[GLOBAL]["steps"].min())),
        (ReDo, {"every": 100}, lambda state: int(state[GLOBAL]["steps"].min())),
        (ContinualBackprop, {}, lambda state: int(state[GLOBAL]["steps"].min())),
    ],
    ids=["hare", "reset", "redo", "continual"],
)
def test_what_is_counted_goes_on(method, options, count):
    network = Heads()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    regularizer = method(network, **options).attach(optimizer)
    train(network, optimizer, 7)
    assert count(regularizer.state) == 7


def test_units_of_the_shared_body_are_still_replaced_while_another_head_rests():
    """A head that is not used is another way out of the units: it is read, and not written to."""

    class BothHeads(Heads):
        def forward(self, x, task: int = 0):
            h = self.body(x)
            outputs = self.heads[0](h), self.heads[1](h)
            return outputs[task]

    network = BothHeads()
    with torch.no_grad():
        network.body[2].bias.fill_(-9)  # silent units
    before = copy.deepcopy(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    ReDo(network, every=1).attach(optimizer)
    train(network, optimizer, 1)
    assert not torch.equal(network.body[2].weight, before.body[2].weight)
    assert not network.heads[0].weight.any()
    assert torch.equal(network.heads[1].weight, before.heads[1].weight)


@every_case
def test_a_closure_that_leaves_a_head_out_is_as_a_step_without(case):
    networks = []
    for with_closure in (False, True):
        torch.manual_seed(0)
        network = Heads()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
        build(case, network).attach(optimizer)

        def closure(network=network, optimizer=optimizer):
            optimizer.zero_grad()
            loss = network(torch.ones(3, 4)).square().mean()
            loss.backward()
            return loss

        for _ in range(5):
            if with_closure:
                optimizer.step(closure)
            else:
                closure()
                optimizer.step()
        networks.append(network)
    assert all(torch.equal(a, b) for a, b in zip(*(n.parameters() for n in networks), strict=True))


def test_the_cases_are_those_of_all_methods():
    assert len(CASES) >= 19


@every_case_that_acts_in_steps
@pytest.mark.filterwarnings("ignore:expected activations of all units that are trained")  # head 1 gets them now
def test_a_head_that_was_used_keeps_its_bits_while_it_rests(case):
    torch.manual_seed(0)
    network = Heads()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    build(case, network).attach(optimizer)
    train(network, optimizer, 3)
    before = copy.deepcopy(network.heads[0])
    train(network, optimizer, 9, task=1)
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), network.heads[0].parameters(), strict=True))


def test_units_of_a_branch_that_runs_but_is_not_trained_stay():
    """Silent units of both branches are seen; only those of the branch in the loss are replaced."""

    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = (nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)) for _ in range(2))

        def forward(self, x):
            return self.a(x), self.b(x)

    network = Branches()
    with torch.no_grad():
        for branch in (network.a, network.b):
            branch[0].bias.fill_(-9)
    before = copy.deepcopy(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    ReDo(network, every=1).attach(optimizer)
    network(torch.randn(12, 4))[0].square().mean().backward()
    optimizer.step()
    assert not torch.equal(network.a[0].weight, before.a[0].weight)
    for old, new in zip(before.b.parameters(), network.b.parameters(), strict=True):
        assert torch.equal(old, new)
