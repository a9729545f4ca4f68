"""A network reset: which layers, how often, with which numbers, and the optimizer's memory with them."""

import collections
import copy
import math

import pytest
import torch
from torch import nn

from oracles.replaced_units import OPTIMIZERS, batches, perceptron, train
from supple import NetworkReset, Population
from supple.mitigators.kernels import SEED_OFFSET
from support.resting import resting


class CountingInPython(torch.optim.Optimizer):
    """Adam as others write it, with a number for the steps."""

    def __init__(self, network):
        super().__init__(network.parameters(), {"lr": 0.01})

    @torch.no_grad()
    def step(self):
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            state["step"] = state.get("step", 0) + 1
            for key, decay, new in (("exp_avg", 0.9, parameter.grad), ("exp_avg_sq", 0.99, parameter.grad**2)):
                state.setdefault(key, torch.zeros_like(parameter)).lerp_(new, 1 - decay)
            mean, square = state["exp_avg"] / (1 - 0.9 ** state["step"]), state["exp_avg_sq"]
            parameter.sub_(0.01 * mean / (1e-8 + square / (1 - 0.99 ** state["step"])).sqrt())


STARTED_AGAIN = {
    **OPTIMIZERS,
    "nadam": lambda network: torch.optim.NAdam(network.parameters(), lr=0.01),
    "radam": lambda network: torch.optim.RAdam(network.parameters(), lr=0.01),
    "counting in Python": CountingInPython,
}


def changed(network, before):
    return {n for (n, a), b in zip(network.named_parameters(), before.parameters(), strict=True) if (a != b).any()}


def reset_once(network, **options):
    before = copy.deepcopy(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    NetworkReset(network, every=1, **options).attach(optimizer)
    resting(network)
    optimizer.step()
    return changed(network, before)


def test_which_layers():
    weights = {f"{index}.{name}" for index in (0, 2, 4) for name in ("weight", "bias")}
    assert reset_once(perceptron()) == weights
    assert reset_once(perceptron(), layers=1) == {"4.weight", "4.bias"}
    assert reset_once(perceptron(), layers=2) == {"2.weight", "2.bias", "4.weight", "4.bias"}
    assert reset_once(perceptron(), layers=["0"]) == {"0.weight", "0.bias"}
    assert reset_once(perceptron(), roles={"0.weight": None}) == weights - {"0.weight"}


@pytest.mark.parametrize("optimizer", STARTED_AGAIN)
def test_as_a_run_that_starts_again(optimizer):
    """After a reset training goes on as from a fresh network with a fresh optimizer, to the bit."""
    network = perceptron()
    mine = STARTED_AGAIN[optimizer](network)
    NetworkReset(network, every=10, seed=5).attach(mine)
    random = torch.Generator().manual_seed(SEED_OFFSET + 5)
    twin, theirs = copy.deepcopy(network), None
    fresh = []
    for step, batch in enumerate(batches(25), 1):
        train(network, mine, batch)
        if theirs is not None:
            train(twin, theirs, batch)
            if step % 10:
                assert not changed(network, twin), step
        if step % 10 == 0:
            torch.manual_seed(int(torch.randint(2**62, (), generator=random)))
            for index in (4, 2, 0):
                twin[index].reset_parameters()
            theirs = STARTED_AGAIN[optimizer](twin)
            assert not changed(network, twin)
            fresh.append(copy.deepcopy(twin))
    assert len(changed(*fresh)) == 6, "each reset draws other numbers"


def test_a_last_layer_that_is_tied_to_an_earlier_one_is_refused():
    network = nn.ModuleDict({"embed": nn.Embedding(5, 4), "hidden": nn.Linear(4, 4), "head": nn.Linear(4, 5)})
    network["head"].weight = network["embed"].weight
    with pytest.raises(ValueError, match=r"a last layer with its own weight, got one tied to 'embed\.weight'"):
        NetworkReset(network, layers=1)
    NetworkReset(network, layers=["hidden"])


def test_a_network_without_matrices_has_no_layers_to_count():
    with pytest.raises(ValueError, match=r"expected 1 to 0 layers \(those with a matrix\), got 1"):
        NetworkReset(nn.LayerNorm(3), layers=1)


def test_part_of_the_way():
    network = perceptron()
    before, whole = copy.deepcopy(network), copy.deepcopy(network)
    for target, strength in ((network, 0.25), (whole, 1.0)):
        optimizer = torch.optim.SGD(target.parameters(), lr=0.0, momentum=0.9)
        NetworkReset(target, strength=strength, every=1).attach(optimizer)
        train(target, optimizer, next(batches(1)))
        momentum = optimizer.state[target[0].weight]["momentum_buffer"]
        if strength < 1:
            kept = momentum.clone()
        else:
            assert not momentum.any()
    assert kept.any()
    for mine, old, new in zip(network.parameters(), before.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine, 0.75 * old + 0.25 * new)


def test_batch_norm_statistics_start_anew_and_a_broken_network_recovers():
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = torch.optim.Adam(network.parameters())
    NetworkReset(network, every=3).attach(optimizer)
    for step in range(3):
        optimizer.zero_grad()
        (network(torch.randn(5, 3)).sum() * (math.nan if step == 1 else 1)).backward()
        optimizer.step()
    assert all(parameter.isfinite().all() for parameter in network.parameters())
    assert network[1].running_var.tolist() == [1] * 4
    assert network[1].num_batches_tracked == 0
    assert all(not moment.any() for state in optimizer.state.values() for moment in state.values())


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("absent", ["frozen", "in an optimizer that takes no step"])
def test_batch_norm_statistics_start_anew_also_where_the_first_parameter_does_not(absent, every):
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    method = NetworkReset(network, every=every)
    if absent == "frozen":
        network[0].requires_grad_(False)
    else:
        method.attach(torch.optim.Adam(network[0].parameters()))
    optimizer = torch.optim.Adam(network[1:].parameters())
    method.attach(optimizer)
    for _ in range(3):
        network(torch.randn(5, 3)).sum().backward()
        optimizer.step()
    assert network[1].running_var.tolist() == [1] * 4


def test_a_network_between_two_optimizers_moves_its_statistics_once():
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    method = NetworkReset(network, strength=0.5, every=2)
    optimizers = [torch.optim.SGD(resting(layer).parameters(), lr=0.1) for layer in network]
    for optimizer in optimizers:
        method.attach(optimizer)
    for _ in range(2):
        nn.init.constant_(network[1].running_mean, 8.0)
        for optimizer in optimizers:
            optimizer.step()
    assert network[1].running_mean.tolist() == [4] * 4


@pytest.mark.parametrize(("strengths", "steps"), [([1.0, 1.0], 0), ([1.0, 0.5], 3)])
def test_members_share_the_optimizers_count_of_steps(strengths, steps):
    population = Population(lambda: nn.Linear(3, 2), [3, 4])
    optimizer = torch.optim.Adam(population.parameters())
    NetworkReset(population, strength=torch.tensor(strengths), every=3).attach(optimizer)
    for _ in range(3):
        for parameter in population.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    assert {state["step"].item() for state in optimizer.state.values()} == {steps}


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_is_skipped_for_an_overflow_postpones_the_reset(fused):
    network = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0, fused=fused)
    NetworkReset(network, every=3).attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    resets = []
    for step in range(1, 8):
        before = copy.deepcopy(network)
        optimizer.zero_grad()
        scaler.scale(network(torch.ones(1, 3)).sum() * (math.inf if step == 3 else 1)).backward()
        scaler.step(optimizer)
        scaler.update()
        resets += [step] if changed(network, before) else []
    assert resets == [4, 7]


def test_members_are_reset_to_other_networks():
    population = Population(perceptron, [3, 4])
    optimizer = torch.optim.SGD(resting(population).parameters(), lr=0.0)
    NetworkReset(population, strength=torch.tensor([1.0, 1.0]), every=1).attach(optimizer)
    optimizer.step()
    first, second = (population.member(index) for index in range(2))
    assert len(changed(first, second)) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 1.5}, "strength from 0 to 1"),
        ({"every": 0}, "every=0"),
        ({"layers": 0}, "expected 1 to 3 layers"),
        ({"layers": 4}, "expected 1 to 3 layers"),
        ({"layers": ["5"]}, "module of this network"),
        ({"layers": ["1"]}, "expected layers with parameters"),
        ({"layers": "head"}, r"write \['head'\]"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        NetworkReset(perceptron(), **options)


def test_a_module_that_cannot_draw_its_parameters_is_named():
    network = nn.Sequential(nn.Linear(2, 2), nn.PReLU())
    network.register_parameter("scale", nn.Parameter(torch.ones(2)))
    with pytest.raises(ValueError, match="'scale'"):
        NetworkReset(network)


@pytest.mark.parametrize(("strength", "count"), [(1.0, 0), (0.5, 3)])
def test_counts_in_python_restart_only_with_the_whole_network(strength, count):
    network = torch.nn.Linear(3, 2)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer = CountingInPython(network)
    NetworkReset(network, strength=strength, every=3).attach(optimizer)
    for _ in range(3):
        optimizer.step()
    assert {state["step"] for state in optimizer.state.values()} == {count}


@pytest.mark.parametrize("absent", ["frozen", "left out"])
def test_the_statistics_of_a_backbone_that_is_not_trained_stay(absent):
    backbone = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    network = nn.Sequential(backbone, nn.BatchNorm1d(4), nn.Linear(4, 2))
    network(torch.randn(8, 3) + 2)
    roles = {f"0.{name}": None for name, _ in backbone.named_parameters()} if absent == "left out" else {}
    backbone.requires_grad_(absent == "left out").eval()
    statistics = backbone[1].running_mean.clone()
    optimizer = torch.optim.Adam([parameter for parameter in network.parameters() if parameter.requires_grad])
    NetworkReset(network, every=1, roles=roles).attach(optimizer)
    network(torch.randn(8, 3)).sum().backward()
    optimizer.step()
    assert torch.equal(backbone[1].running_mean, statistics)
    assert not network[1].running_mean.any(), "a trained batch norm starts again from zero"


class Masked(nn.Linear):
    """Uses the lower triangle of its weight, and keeps the size of its last batch in a buffer."""

    def __init__(self):
        super().__init__(4, 4)
        self.register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1))
        self.register_buffer("last", torch.zeros(3))

    def forward(self, x):
        self.last = torch.zeros(len(x))
        return x @ (self.weight * self.mask.exp()).T + self.bias


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_buffers_that_are_no_statistics_stay_as_they_are(strength):
    network = Masked()
    mask = network.mask.clone()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    NetworkReset(network, strength=strength, every=1).attach(optimizer)
    network(torch.randn(5, 4)).sum().backward()
    optimizer.step()
    assert torch.equal(network.mask, mask)
    assert network.last.shape == (5,)


def test_a_module_is_reset_and_not_one_whose_name_begins_alike():
    network = nn.Sequential(collections.OrderedDict(head=nn.Linear(2, 2), head2=nn.Linear(2, 2)))
    before = network.head2.weight.clone()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    NetworkReset(network, every=1, layers=["head"]).attach(optimizer)
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert torch.equal(network.head2.weight, before)
