"""Shrink and perturb: each variant's formula, and that what it adds is drawn from what it says."""

import copy

import pytest
import torch
from torch import nn

from oracles.training import LR, assert_follows
from supple import Population, ShrinkAndPerturb
from support.resting import resting

VARIANTS = ["step-fresh", "step-noise", "task"]


def sgd(network, lr=LR):
    return torch.optim.SGD(resting(network).parameters(), lr=lr)


def act(method, network, lr=LR):
    """The one moment at which this variant acts."""
    if method.variant == "task":
        method.start_task()
    else:
        method.after_step(sgd(network, lr))


def weights(network):
    return [parameter.detach().clone() for parameter in network.parameters()]


@pytest.mark.parametrize("variant", VARIANTS)
def test_twenty_steps_of_shrinking_are_the_oracles(variant, small_network):
    """(1 − s)θ each step, (1 − αs)θ as weight decay, or nothing until a task starts."""
    network = small_network()
    kept = {"step-fresh": 1 - 0.2, "step-noise": 1 - LR * 0.2, "task": 1.0}[variant]

    def step(parameters, gradients, number):
        return {name: kept * (value - LR * gradients[name]) for name, value in parameters.items()}

    assert_follows(network, ShrinkAndPerturb(network, strength=0.2, perturb=0.0, variant=variant), step)


@pytest.mark.parametrize("perturb", [0.0, 0.5])
@pytest.mark.parametrize("variant", ["step-fresh", "task"])
def test_the_old_shrinks_and_the_fresh_is_added(variant, perturb):
    network = nn.Linear(30, 20)
    before = network.weight.detach().clone()
    fresh = copy.deepcopy(network)
    act(ShrinkAndPerturb(fresh, strength=1.0, variant=variant), fresh)
    act(ShrinkAndPerturb(network, strength=0.3, perturb=perturb, variant=variant), network)
    torch.testing.assert_close(network.weight, 0.7 * before + 0.3 * perturb * fresh.weight)


@pytest.mark.parametrize("variant", ["step-fresh", "task"])
def test_fresh_values_have_the_initializers_distribution(variant):
    """torch's default: uniform on ±1/√fan-in for weight and bias; gains are one."""
    network = nn.Sequential(nn.Linear(100, 400), nn.LayerNorm(400))
    for parameter in network.parameters():
        nn.init.constant_(parameter, 50.0)
    act(ShrinkAndPerturb(network, strength=1.0, variant=variant), network)
    for parameter in network[0].parameters():
        values = parameter.detach() * 100**0.5
        count = values.numel()
        assert values.abs().max() <= 1 + 1e-4
        assert abs(values.mean()) < 4 * (1 / 3 / count) ** 0.5
        assert abs(values.square().mean() - 1 / 3) < 4 * (4 / 45 / count) ** 0.5
        quartile = (values < -0.5).float().mean()
        assert abs(quartile - 0.25) < 4 * (3 / 16 / count) ** 0.5
    torch.testing.assert_close(network[1].weight, torch.ones(400), rtol=0, atol=1e-5)
    torch.testing.assert_close(network[1].bias, torch.zeros(400), rtol=0, atol=1e-5)


def test_noise_is_normal_times_strength_and_perturb():
    network = nn.Linear(200, 100)
    nn.init.zeros_(network.weight)
    act(ShrinkAndPerturb(network, strength=0.5, perturb=0.2, variant="step-noise"), network)
    noise, count = network.weight.detach(), network.weight.numel()
    assert abs(noise.mean()) < 4 * 0.1 / count**0.5
    assert abs(noise.std() / 0.1 - 1) < 4 / (2 * count) ** 0.5
    assert abs((noise.abs() < 0.1).float().mean() - 0.6827) < 4 * (0.6827 * 0.3173 / count) ** 0.5


def test_noise_shrinks_by_each_groups_step_size():
    network = resting(nn.Linear(3, 2))
    start = weights(network)
    groups = [{"params": [network.weight], "lr": 0.1}, {"params": [network.bias], "lr": torch.tensor(0.4)}]
    method = ShrinkAndPerturb(network, strength=0.5, perturb=0.0, variant="step-noise")
    method.after_step(torch.optim.SGD(groups))
    for old, new, step_size in zip(start, network.parameters(), (0.1, 0.4), strict=True):
        torch.testing.assert_close(new.detach(), (1 - step_size * 0.5) * old)


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_differs_every_time_by_seed_and_leaves_the_global_state(variant):
    network = nn.Linear(4, 3)
    before = torch.get_rng_state()

    def perturbations(seed):
        method = ShrinkAndPerturb(network, strength=1.0, variant=variant, seed=seed)
        drawn = []
        for _ in range(2):
            for parameter in network.parameters():
                nn.init.zeros_(parameter)
            act(method, network)
            drawn += weights(network)
        return drawn

    first, again, other = perturbations(1), perturbations(1), perturbations(2)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert not torch.equal(first[0], first[2])


def test_a_task_starts_only_when_told():
    network = nn.Linear(3, 2)
    start = weights(network)
    optimizer = sgd(network)
    method = ShrinkAndPerturb(network, strength=0.5, variant="task").attach(optimizer)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(start, network.parameters(), strict=True))
    assert method.steps == (0,), "it acts in no step"
    method.start_task()
    assert not any(torch.equal(a, b) for a, b in zip(start, network.parameters(), strict=True))


@pytest.mark.parametrize("variant", ["step-fresh", "step-noise"])
def test_forms_of_each_step_do_not_act_when_a_task_starts(variant):
    network = nn.Linear(3, 2)
    start = weights(network)
    ShrinkAndPerturb(network, strength=0.5, variant=variant).start_task()
    assert all(torch.equal(a, b) for a, b in zip(start, network.parameters(), strict=True))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_layer_without_inputs_is_perturbed_as_well():
    network = nn.Sequential(nn.Linear(0, 3), nn.Linear(3, 2))
    start = weights(network)
    ShrinkAndPerturb(network, strength=0.5).after_step(sgd(network))
    assert not any(torch.equal(a, b) for a, b in zip(start[2:], list(network.parameters())[2:], strict=True))


def test_a_task_of_a_population_starts_for_each_member_by_its_strength():
    population = Population(lambda: nn.Linear(3, 2), [4, 5])
    start = weights(population)
    ShrinkAndPerturb(population, strength=torch.tensor([0.0, 0.5]), variant="task").start_task()
    for old, new in zip(start, population.parameters(), strict=True):
        assert torch.equal(old[0], new[0])
        assert not torch.equal(old[1], new[1])


def test_frozen_parameters_do_not_start_a_task():
    network = nn.Linear(3, 2)
    network.bias.requires_grad_(False)
    start = weights(network)
    ShrinkAndPerturb(network, strength=0.5, variant="task").start_task()
    assert not torch.equal(start[0], network.weight)
    assert torch.equal(start[1], network.bias)


def test_an_unknown_variant_is_named_with_the_nearest():
    with pytest.raises(ValueError, match=r"'step-nois': did you mean 'step-noise'\?.*step-fresh.*task"):
        ShrinkAndPerturb(nn.Linear(2, 2), variant="step-nois")


@pytest.mark.parametrize("perturb", [-0.1, float("nan")])
def test_a_bad_perturbation_is_refused(perturb):
    with pytest.raises(ValueError, match=rf"expected a perturbation.*{perturb}"):
        ShrinkAndPerturb(nn.Linear(2, 2), perturb=perturb)


def test_new_values_at_a_tasks_start_have_all_their_bits():
    network = nn.Linear(300, 300)
    ShrinkAndPerturb(network, strength=1.0, perturb=1.0, variant="task").start_task()
    assert network.weight.unique().numel() > 65_536


def test_the_perturbation_is_a_tenth_for_noise_and_whole_for_fresh_values():
    variants = ("step-noise", "step-fresh", "task")
    assert [ShrinkAndPerturb(nn.Linear(2, 2), variant=variant).perturb for variant in variants] == [0.1, 1.0, 1.0]
