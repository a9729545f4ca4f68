"""The paper's form, attached, does not pass its target in a step of plain gradient descent: it cannot explode."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from supple import SpectralRegularizer
from supple.mitigators import Mitigator
from support.resting import resting
from support.zoo import spread


def test_a_fresh_embedding_of_many_words_stays_finite():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Embedding(5000, 64), nn.Linear(64, 4))
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    SpectralRegularizer(network, 1e-2).attach(optimizer)
    norms = []
    for _ in range(30):
        optimizer.zero_grad()
        network(torch.randint(5000, (16,))).logsumexp(-1).sum().backward()
        optimizer.step()
        norms.append(network[0].weight.detach().norm().item())
    assert max(norms) <= 1.01 * norms[0]
    assert norms[-1] < 0.95 * norms[0]


@settings(max_examples=60)
@given(
    lr=st.sampled_from([1e-3, 0.1, 1.0, 30.0]),
    strength=st.sampled_from([1e-4, 1e-2, 1.0, 1e4]),
    sigma=st.sampled_from([0.2, 0.9, 1.1, 5.0, 50.0]),
    exponent=st.sampled_from([1, 2, 3, 4]),
    target=st.sampled_from([0.0, 0.5, 1.0, 3.0, "initial"]),
    as_tensor=st.booleans(),
)
def test_no_stretch_passes_its_target(lr, strength, sigma, exponent, target, as_tensor):
    torch.manual_seed(0)
    network = spread(nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7)), sigma=sigma).double()
    optimizer = torch.optim.SGD(resting(network).parameters(), lr=torch.tensor(lr) if as_tensor else lr)
    options = {"exponent": exponent, "target": target, "power_iterations": 40}
    method = SpectralRegularizer(network, strength, **options).attach(optimizer)
    goals = [method._targets.of([name], method.state) for name in ("0.weight", "0.bias", "1.weight")]

    def stretches():
        weight, bias, gain = network[0].weight, network[0].bias, network[1].weight
        return [torch.linalg.svdvals(weight.detach())[0], bias.detach().norm(), gain.detach().clone()]

    before = stretches()
    optimizer.step()
    for old, new, goal in zip(before, stretches(), goals, strict=True):
        # The direction of one singular vector is left: another may then be the longest.
        assert ((new - goal).abs() <= (old - goal).abs() + 1e-6 * (1 + old.abs())).all()
        assert ((new - goal) * (old - goal) >= -1e-6 * (1 + old.abs()) ** 2).all()


@pytest.mark.parametrize("momentum", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("lr", [0.01, 1.0])
def test_nor_does_momentum_make_it_explode(momentum, lr):
    torch.manual_seed(0)
    network = spread(nn.Linear(20, 30), sigma=40.0)
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=momentum)
    SpectralRegularizer(network, 1e-2, power_iterations=5).attach(optimizer)
    for _ in range(300):
        network.zero_grad()
        resting(network)
        optimizer.step()
        assert torch.linalg.matrix_norm(network.weight.detach(), 2) < 90


def test_a_momentum_of_one_has_a_bound_too():
    network = spread(nn.Linear(5, 7), sigma=9.0)
    optimizer = torch.optim.SGD(resting(network).parameters(), lr=0.1, momentum=1.0)
    SpectralRegularizer(network, 1e6, power_iterations=50).attach(optimizer)
    optimizer.step()
    assert torch.linalg.matrix_norm(network.weight.grad, 2).item() == pytest.approx(8 / (1000 * 0.1), rel=1e-4)


def test_what_is_at_its_target_stays_finite_without_a_step():
    network = nn.LayerNorm(3)
    optimizer = torch.optim.SGD(resting(network).parameters(), lr=torch.tensor(0.0))
    SpectralRegularizer(network, 1.0).attach(optimizer)
    optimizer.step()
    assert not any(parameter.grad.any() for parameter in network.parameters())


def test_a_small_pull_is_not_changed_by_the_bound():
    networks = [spread(nn.Linear(5, 7)) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    free, bound = (SpectralRegularizer(resting(network), 1e-3) for network in networks)
    free.before_step()
    optimizer = torch.optim.SGD(networks[1].parameters(), lr=1e-30)
    bound.attach(optimizer)
    optimizer.step()
    for a, b in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("lr", [0.0, torch.tensor(0.0)])
def test_nothing_is_pulled_before_a_step_of_size_zero(lr):
    network = spread(nn.Linear(5, 7), sigma=50.0)
    optimizer = torch.optim.SGD(resting(network).parameters(), lr=lr, momentum=0.9)
    SpectralRegularizer(network, 1.0).attach(optimizer)
    optimizer.step()
    assert not network.weight.grad.any(), "momentum would keep it until the step size is larger"


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("schedule", ["warm-up", "one-cycle", "by hand"])
def test_a_warm_up_does_not_raise_what_is_pulled_down(schedule, as_tensor):
    network = spread(nn.Linear(8, 8, bias=False), sigma=100.0)
    optimizer = torch.optim.SGD(network.parameters(), lr=torch.tensor(0.1) if as_tensor else 0.1, momentum=0.9)
    if schedule == "warm-up":
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 5))
    elif schedule == "one-cycle":
        one_cycle = {"max_lr": 0.1, "total_steps": 31, "cycle_momentum": False, "div_factor": 1e3}
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, **one_cycle)
    SpectralRegularizer(network, 1e-4).attach(optimizer)
    sigmas = []
    for step in range(30):
        if schedule == "by hand":
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * 0 + (0.1 if step > 5 else 0.0)
        network.zero_grad()
        resting(network)
        optimizer.step()
        if schedule != "by hand":
            scheduler.step()
        sigmas.append(torch.linalg.matrix_norm(network.weight.detach(), 2).item())
    assert max(sigmas) < 101
    assert sigmas[-1] < 90


def test_each_group_has_its_own_bound():
    network = nn.Sequential(*(spread(nn.Linear(5, 5, bias=False), sigma=9.0) for _ in range(2)))
    groups = [{"params": network[0].parameters(), "lr": 0.5}, {"params": network[1].parameters(), "lr": 2.0}]
    optimizer = torch.optim.SGD(groups)
    SpectralRegularizer(resting(network), 1e6, power_iterations=50).attach(optimizer)
    optimizer.step()
    for layer, lr in zip(network, (0.5, 2.0), strict=True):
        assert torch.linalg.matrix_norm(layer.weight.grad, 2).item() == pytest.approx(8 / lr, rel=1e-4)
        assert torch.linalg.svdvals(layer.weight.detach())[0] < 4


@pytest.mark.parametrize("takes", [False, True])
def test_a_method_of_ones_own_may_take_the_step_sizes(takes):
    seen = []

    class Plain(Mitigator):
        def add_gradients(self, parameters, gradients, state, strength):
            seen.append(None)

    class Taking(Mitigator):
        def add_gradients(self, parameters, gradients, state, strength, *, step_sizes=None):
            seen.append(step_sizes)

    network = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(resting(network).parameters(), lr=0.25)
    (Taking if takes else Plain)(network, 0.1).attach(optimizer)
    optimizer.step()
    assert seen == [{"weight": 0.25, "bias": 0.25} if takes else None]
