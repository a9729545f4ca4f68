"""Weights that are computed: pruned, adapted by low-rank factors, normalized."""

import logging
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from supple import (
    NetworkReset,
    NormalizeAndProject,
    ParsevalRegularizer,
    PlasticityMonitor,
    Population,
    ReDo,
    ShrinkAndPerturb,
    SpectralRegularizer,
    describe,
)
from supple.network.find_roles import find_roles
from supple.nn import spectral_normalization
from support.resting import resting


def pruned(amount=0.5):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 10), nn.Linear(10, 4))
    with torch.no_grad():
        for layer in (network[0], network[2], network[3]):
            layer.weight.mul_(4)
    prune.random_unstructured(network[2], "weight", amount)
    prune.l1_unstructured(network[2], "bias", 0.3)
    return network


def masked(network):
    return network[2].weight_orig.detach() * network[2].weight_mask


@pytest.mark.parametrize("decoupled", [False, True])
def test_the_pruned_weight_is_what_is_held(decoupled):
    network = pruned()
    sigma = torch.linalg.matrix_norm(masked(network), 2).item()
    whole = torch.linalg.matrix_norm(network[2].weight_orig.detach(), 2).item()
    assert sigma < 0.9 * whole
    method = SpectralRegularizer(network, 0.1, decoupled=decoupled, power_iterations=20)
    assert method.spectral_norms()["2.weight_orig"].item() == pytest.approx(sigma, rel=1e-3)
    assert f"{sigma:.3f}" in method.describe()
    assert f"{sigma:.3f}" in describe(network)
    monitor = PlasticityMonitor(network, diagnostics=["spectral_norm"])
    assert monitor.measure()["spectral_norm/2.weight_orig"] == pytest.approx(sigma, rel=1e-4)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.2)
    method.attach(optimizer)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    for _ in range(600):
        network.zero_grad()
        resting(network)
        optimizer.step()
    for name in ("weight", "bias"):
        kept = network[2].get_buffer(f"{name}_mask").bool()
        original = network[2].get_parameter(f"{name}_orig")
        assert torch.equal(original[~kept], before[f"2.{name}_orig"][~kept])
        assert not torch.equal(original[kept], before[f"2.{name}_orig"][kept])
    assert torch.linalg.matrix_norm(masked(network), 2).item() == pytest.approx(1, abs=1e-2)


def test_the_gradient_is_that_of_the_penalty_of_what_is_left():
    network = pruned()
    method = SpectralRegularizer(resting(network), 1.0, power_iterations=200)
    method.before_step()
    closed = network[2].weight_orig.grad.clone()
    network.zero_grad()
    weight = network[2].weight_orig.detach().double().requires_grad_()
    ((torch.linalg.svdvals(weight * network[2].weight_mask)[0] ** 2 - 1) ** 2).backward()
    torch.testing.assert_close(closed.double(), weight.grad, rtol=1e-4, atol=1e-4)
    method.penalty().backward()
    torch.testing.assert_close(closed, network[2].weight_orig.grad, rtol=1e-5, atol=1e-5)


def test_the_ceiling_is_that_of_what_is_left():
    network = pruned()
    sigma = torch.linalg.matrix_norm(masked(network), 2)
    method = SpectralRegularizer(network, target="initial")
    torch.testing.assert_close(method.state["2.weight_orig"]["target"].squeeze(), sigma)


@pytest.mark.parametrize("method", [ParsevalRegularizer, NormalizeAndProject])
def test_others_that_go_by_role_change_only_what_is_left_too(method):
    network = pruned()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    method(network).attach(optimizer)
    norm = masked(network).norm()
    before = network[2].weight_orig.detach().clone()
    for step in range(5):
        optimizer.zero_grad()
        network(torch.randn(8, 12, generator=torch.Generator().manual_seed(step))).square().sum().backward()
        optimizer.step()
    kept = network[2].weight_mask.bool()
    assert torch.equal(network[2].weight_orig[~kept], before[~kept])
    assert not torch.equal(network[2].weight_orig[kept], before[kept])
    if method is NormalizeAndProject:
        torch.testing.assert_close(masked(network).norm(), norm)


@pytest.mark.parametrize("method", [SpectralRegularizer, NormalizeAndProject])
def test_pruned_for_the_first_time_after_construction_is_refused(method):
    network = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2))
    optimizer = torch.optim.SGD(resting(network).parameters(), lr=0.1)
    method(network).attach(optimizer)
    prune.l1_unstructured(network[0], "weight", 0.5)
    with pytest.raises(ValueError, match=r"another '0\.weight'.*pruning.*build the method after"):
        optimizer.step()


def test_attention_that_is_pruned_still_has_three_matrices():
    network = nn.MultiheadAttention(8, 2)
    prune.random_unstructured(network, "in_proj_weight", 0.3)
    assert find_roles(network)["in_proj_weight_orig"].layout[0] == 3


def test_pruned_again_after_construction():
    network = pruned(0.2)
    method = SpectralRegularizer(network, power_iterations=50)
    prune.random_unstructured(network[2], "weight", 0.5)
    sigma = torch.linalg.matrix_norm(masked(network), 2).item()
    for _ in range(20):
        method.penalty()
    assert method.spectral_norms()["2.weight_orig"].item() == pytest.approx(sigma, rel=1e-3)


def test_a_pruned_population():
    population = Population(pruned, [0, 1])
    method = SpectralRegularizer(population, power_iterations=50)
    network = population.member(0)
    sigma = torch.linalg.matrix_norm(masked(network), 2).item()
    assert method.spectral_norms()["2.weight_orig"][0].item() == pytest.approx(sigma, rel=1e-3)


# The older functions of torch, which compute a weight before each forward pass.


@pytest.mark.filterwarnings("ignore:.*_norm.*is deprecated")
@pytest.mark.parametrize("method", [NetworkReset, ShrinkAndPerturb])
@pytest.mark.parametrize("compute", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_what_a_reset_would_not_reach_is_named(method, compute):
    network = nn.Sequential(compute(nn.Linear(3, 3)), nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"of Linear, which does not write '0\.weight_\w+'.*roles="):
        method(network)
    names = [name for name, _ in network[0].named_parameters()]
    built = method(network, roles={f"0.{name}": None for name in names})
    assert not any(name.startswith("0.weight") for name in built.parameters)


def test_a_reset_that_forgets_one_of_its_parameters_is_named():
    class Forgetful(nn.Linear):
        def __init__(self):
            super().__init__(3, 3)
            self.gate = nn.Parameter(torch.ones(3))

    with pytest.raises(ValueError, match=r"Forgetful.*'0\.gate'"):
        NetworkReset(nn.Sequential(Forgetful(), nn.Linear(3, 2)))


# Low-rank factors.


def adapted():
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    return get_peft_model(network, LoraConfig(r=4, lora_alpha=4, target_modules=["0"]))


@pytest.mark.parametrize("held", [False, True])
def test_the_ceiling_lets_a_zero_factor_grow_to_one_and_leaves_the_frozen_weights_alone(held):
    network = adapted()
    factors = {name: p for name, p in network.named_parameters() if "lora" in name}
    (up,) = (name for name in factors if "lora_B" in name)
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.05)
    if held:
        method = SpectralRegularizer(network, target="initial", decoupled=True).attach(optimizer)
        assert method.state[up]["target"].item() == 1
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    for step in range(300):
        x = torch.randn(32, 16, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (network(x) - 6 * x[:, :4]).square().mean().backward()
        optimizer.step()
    sigma = torch.linalg.matrix_norm(factors[up].detach(), 2).item()
    assert 0.5 < sigma < 1.5 if held else sigma > 4  # the loss pulls the other way
    assert all(torch.equal(before[n], p) for n, p in network.named_parameters() if n not in factors)


def test_frozen_weights_that_an_adapter_replaces_in_each_pass():
    from peft import LoraConfig, get_peft_model

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.attention(x, x, x)[0])

    network = get_peft_model(Attention(), LoraConfig(r=2, target_modules=["attention"]))
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    method = SpectralRegularizer(network, target="initial").attach(optimizer)
    for _ in range(2):
        network(torch.randn(2, 4, 8)).sum().backward()
        optimizer.step()
    assert method.steps == (2,)


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("parametrize", [nn.utils.parametrizations.orthogonal, nn.utils.parametrizations.weight_norm])
def test_what_a_weight_is_computed_from_is_left_alone_and_named(parametrize, decoupled, caplog):
    torch.manual_seed(0)
    network = nn.Sequential(parametrize(nn.Linear(20, 64)), nn.ReLU(), nn.Linear(64, 2))
    weight, last = network[0].weight.detach().clone(), network[2].weight.detach().clone()
    optimizer = torch.optim.SGD(resting(network).parameters(), lr=0.1)
    with caplog.at_level(logging.WARNING, logger="supple"):
        SpectralRegularizer(network, 1.0, decoupled=decoupled).attach(optimizer)
    assert "'0.parametrizations.weight.original" in caplog.records[0].message
    optimizer.step()
    assert torch.equal(network[0].weight, weight)
    assert not torch.equal(network[2].weight, last)


# Autocast.


def test_normalized_weights_are_exact_under_autocast():
    torch.manual_seed(0)
    layer = spectral_normalization(nn.Linear(40, 30))
    for _ in range(300):
        layer.weight  # noqa: B018 - a forward pass is a power iteration
    with torch.autocast("cpu", torch.bfloat16):
        weight = layer.weight
    assert torch.linalg.matrix_norm(weight.detach(), 2).item() == pytest.approx(1, abs=1e-4)


# torch.jit.


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("method", [SpectralRegularizer, ReDo])
def test_what_torch_jit_has_scripted_is_refused(method):
    network = torch.jit.script(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    with pytest.raises(TypeError, match=r"expected a module of Python code, got '0.weight'.*the original module"):
        method(network)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripting_with_an_observing_method_attached_says_what_to_do():
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    method = ReDo(network).attach(optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RuntimeError, match=r"ReDo.*detach\(\)"):
            torch.jit.script(network)
        method.detach()
        torch.jit.script(network)
