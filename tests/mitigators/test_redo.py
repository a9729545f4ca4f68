"""ReDo against the paper's definition written out, and what must not happen to a network."""

import copy
import math

import pytest
import torch
from torch import nn

from oracles.replaced_units import OPTIMIZERS, Replacing, assert_same, batches, perceptron, train
from supple import ContinualBackprop, Population, ReDo, SelfNormalizedResets


class Recycled(Replacing):
    def __init__(self, *args, threshold, every):
        super().__init__(*args)
        self.threshold, self.every = threshold, every

    def judge(self, layer, h):
        if self.steps % self.every:
            return []
        means = [sum(abs(value) for value in unit.tolist()) / len(unit) for unit in h.T]
        layer_mean = sum(means) / len(means)
        return [unit for unit, mean in enumerate(means) if mean / (layer_mean + 1e-9) <= self.threshold]

    def fresh(self, layer, chosen):
        if self.steps % self.every:
            return {}
        rows = self.draw(layer, self.layers[layer].out_features)  # for all units, of which some are taken
        return {unit: rows[unit] for unit in chosen}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_as_the_paper_defines_it(optimizer):
    network = perceptron()
    oracle = Recycled(network, optimizer, threshold=0.3, every=4)
    mine = OPTIMIZERS[optimizer](network)
    ReDo(network, strength=0.3, every=4).attach(mine)
    for step, batch in enumerate(batches(24)):
        train(network, mine, batch)
        oracle.step(batch)
        assert_same(network, mine, oracle, step)
    assert oracle.replaced >= 10


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_recycling_a_silent_unit_does_not_change_the_function(optimizer):
    """Its outgoing weights did not matter before, and are zero after."""
    network = perceptron()
    mine = OPTIMIZERS[optimizer](network)
    for group in mine.param_groups:
        group["lr"] = 0.0
    method = ReDo(network, strength=1e-6, every=1).attach(mine)
    (x, y), *_ = batches(1)
    silent = (torch.relu(network[0](x)) == 0).all(0)
    before, output, head = copy.deepcopy(network), network(x), network[4].bias.clone()
    assert silent.any()
    train(network, mine, (x, y))
    changed = (network[0].weight != before[0].weight).any(1)
    assert torch.equal(changed, silent)
    assert torch.allclose(network(x), output, rtol=1e-12)
    assert torch.equal(network[4].bias, head), "the output layer's units are never reset"
    for _, tensors in zip(range(3), mine.state.values(), strict=False):
        assert all(torch.isfinite(tensor).all() for tensor in tensors.values() if isinstance(tensor, torch.Tensor))
    assert "skipped: reaches the network's output" in method.describe()


class Block(nn.Module):
    """A residual network whose layers all have one width, so that a wrong outgoing layer would fit."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Linear(6, 6), nn.Linear(6, 6)
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        x = self.embed(x)
        return self.head(x + self.second(self.first(x).relu()))


def test_in_a_residual_network_the_outgoing_weights_are_those_that_the_unit_leaves_by():
    network = Block()
    nn.init.constant_(network.first.bias, -99.0)
    before = copy.deepcopy(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    ReDo(network, every=1).attach(optimizer)
    network(torch.randn(4, 6)).sum().backward()
    optimizer.step()
    changed = {n for (n, a), b in zip(network.named_parameters(), before.parameters(), strict=True) if (a != b).any()}
    assert changed == {"first.weight", "first.bias", "second.weight"}
    assert not network.second.weight.any()
    assert not network.first.bias.any()


def test_it_observes_again_when_it_is_attached_again():
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    ReDo(network, strength=100.0, every=1).attach(optimizer).detach().attach(optimizer)
    before = network[0].weight.detach().clone()
    network(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    assert not torch.equal(network[0].weight, before)


def test_batch_norm_starts_anew_for_the_unit():
    network = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 2))
    )
    with torch.no_grad():
        network[1].bias[2] = -99.0
    optimizer = torch.optim.Adam(network.parameters(), lr=0.0)
    x = torch.randn(8, 1, 6, 6)
    network(x).sum().backward()
    optimizer.step()
    for moments in optimizer.state.values():  # the unit is silent, so its own are zero
        moments["exp_avg"].fill_(1)
        moments["exp_avg_sq"].fill_(1)
    ReDo(network, every=1).attach(optimizer)
    network(x).sum().backward()
    optimizer.step()
    norm = network[1]
    assert (norm.weight[2], norm.bias[2], norm.running_mean[2], norm.running_var[2]) == (1, 0, 0, 1)
    assert norm.running_mean[[0, 1, 3]].all()
    assert (network[5].weight == 0).any(0).tolist() == [8 <= column < 12 for column in range(16)]
    for parameter in (network[0].weight, norm.weight, norm.bias):
        for name in ("exp_avg", "exp_avg_sq"):
            kept = optimizer.state[parameter][name].view(4, -1)
            assert (kept == 0).all(1).tolist() == [False, False, True, False]
            assert kept[[0, 1, 3]].all()


def test_several_forward_passes_a_step_are_averaged():
    """As one batch of the same examples; passes without gradients or in evaluation do not count."""
    networks = [perceptron(), perceptron()]
    x = torch.randn(8, 4, dtype=torch.float64)
    for network, parts in zip(networks, ([x], [x[:4], x[4:]]), strict=True):
        optimizer = OPTIMIZERS["sgd"](network)
        ReDo(network, strength=0.3, every=1).attach(optimizer)
        optimizer.zero_grad()
        for part in parts:
            (network(part).square().mean() / len(parts)).backward()
        with torch.no_grad():
            network(9 + 9 * x)
        network.eval()(9 + 9 * x)
        optimizer.step()
    for a, b in zip(*(network.parameters() for network in networks), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_it_looks_only_when_due_also_after_loading():
    network = perceptron()
    optimizer = OPTIMIZERS["sgd"](network)
    method = ReDo(network, every=3).attach(optimizer)
    due = []
    for batch in batches(5):
        due.append(method._recorders[0].enabled)
        train(network, optimizer, batch)
    assert due == [False, False, True, False, False]
    later = ReDo(network, every=3)
    later.observe()
    later.load_state_dict(method.state_dict())
    assert later._recorders[0].enabled


def test_members_observed_as_modules_are_seen_each_in_its_slot():
    """As a laboratory runs them: modules that share the population's memory."""
    population = Population(perceptron, [0, 1])
    with torch.no_grad():
        population.stacked[0].bias[1, 5:] = -99.0
    method = ReDo(population, every=1)
    members = [population.member(index, share=True) for index in range(2)]
    method.observe(members)
    optimizer = torch.optim.SGD(population.parameters(), lr=0.0)
    for member in members:
        member(torch.randn(8, 4, dtype=torch.float64)).sum().backward()
    for parameter in population.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    method.after_step(optimizer)
    biases = population.stacked[0].bias
    assert (biases[1, 5:] == 0).all()
    assert biases[0, 5:].all()


def test_an_initializer_draws_the_new_weights():
    network = perceptron()
    optimizer = OPTIMIZERS["sgd"](network)
    ReDo(network, every=1, initializer=lambda rows, random: rows.fill_(7.0)).attach(optimizer)
    train(network, optimizer, next(batches(1)))
    assert (network[0].weight[0] == 7).all()


class Counting(nn.Linear):
    """Its weight starts as 1, 2, 3, ..., with a global random number added."""

    def reset_parameters(self):
        with torch.no_grad():
            self.weight.copy_(torch.arange(1.0, self.weight.numel() + 1).view_as(self.weight) + torch.rand(()))
            self.bias.zero_()


class Untouched(nn.Linear):
    """What builds the network draws its weights."""

    def reset_parameters(self):
        pass


def new_weights(make_layer, members=None):
    """The incoming weights of four units ``(members…, 4, 3)`` after ReDo replaced those that were silent."""

    def make_network():
        return nn.Sequential(make_layer(3, 4), nn.ReLU(), nn.Linear(4, 2))

    network = make_network() if members is None else Population(make_network, members)
    inside = network if members is None else network.stacked
    nn.init.constant_(inside[0].weight, 0.0)
    nn.init.constant_(inside[0].bias, -1.0)
    optimizer = torch.optim.SGD(inside.parameters(), lr=0.1)
    method = ReDo(network, every=1, seed=5)
    singles = [network.member(index, share=True) for index in range(len(members or ()))]
    method.observe(singles)
    for one in singles or [network]:
        one(torch.ones(2, 3))
    for parameter in inside.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = torch.get_rng_state()
    method.after_step(optimizer)
    assert torch.equal(torch.get_rng_state(), before), "the global random numbers are the user's"
    return inside[0].weight.detach()


@pytest.mark.parametrize("members", [None, (0, 1)])
def test_new_weights_are_drawn_as_the_layer_draws_its_own(members):
    weights = new_weights(Counting, members)
    numbers = weights - torch.arange(1.0, 13.0).view(4, 3)
    assert torch.allclose(numbers, numbers[..., :1, :1])
    assert ((numbers > 0) & (numbers < 1)).all()
    assert members is None or (numbers[0] != numbers[1]).all(), "each member has random numbers of its own"


def test_a_layer_that_is_drawn_from_outside_has_new_weights_of_torchs_range():
    weights = new_weights(Untouched)
    assert weights.abs().max() <= 3**-0.5
    assert weights.unique().numel() == 12


def test_what_was_seen_while_a_layer_was_frozen_does_not_count():
    network = perceptron()
    optimizer = OPTIMIZERS["sgd"](network)
    method = ReDo(network, every=1).attach(optimizer)
    network.requires_grad_(False)
    network[-1].requires_grad_(True)
    for batch in batches(5):
        train(network, optimizer, batch)
    assert not any(entry["forwards"].any() for entry in method.state.values() if "forwards" in entry)


def test_a_copy_of_the_network_is_not_seen():
    network = perceptron()
    optimizer = OPTIMIZERS["sgd"](network)
    method = ReDo(network, every=1).attach(optimizer)
    twin = copy.deepcopy(network)
    twin(torch.full((3, 4), 99.0, dtype=torch.float64))
    assert not method.state["activity of 0"]["forwards"].any(), "a copy's activations are its own"


class Viewed(nn.Module):
    """Features of a signal ``(batch, 1, 6)`` in 4 channels of 4 places, reshaped to rows of ``size``."""

    def __init__(self, size, padding=0):
        super().__init__()
        self.size = size
        self.conv, self.head = nn.Conv1d(1, 4, 3, padding=padding), nn.Linear(size, 2)

    def forward(self, x):
        return self.head(self.conv(x).relu().reshape(-1, self.size))


def test_a_view_that_makes_examples_of_channels_is_named():
    x, wrong = torch.randn(3, 1, 6), "expected 3 examples in 'head' as in 'conv', got 12.*units="
    network, right = Viewed(4), Viewed(16)
    ReDo(network, every=1).observe()
    with pytest.raises(ValueError, match=wrong):
        network(x)
    ReDo(right, every=1).observe()
    copy.deepcopy(right)(x)
    right(x)
    right(x[0])  # a single example
    population = Population(lambda: Viewed(4), [0, 1])
    ReDo(population, every=1).observe()
    with pytest.raises(ValueError, match=wrong):
        population(x.expand(2, 3, 1, 6))
    said = Viewed(4)
    ReDo(said, every=1, units=[("conv", "head")]).observe()
    said(x)


@pytest.mark.parametrize("broken", [torch.inf, torch.nan])
def test_a_batch_that_overflows_does_not_count(broken):
    """As if it had not been, for the members that it reached."""
    population = Population(perceptron, [0, 1])
    lone = [population.member(index) for index in range(2)]
    method = ReDo(population, every=1)
    methods = [ReDo(network, every=1) for network in lone]
    for each in (method, *methods):
        each.observe()
    x = torch.randn(2, 8, 4, dtype=torch.float64)
    bad = torch.stack([x[0] * broken, x[1]])
    for batch in (bad, x):
        population(batch)
    lone[0](x[0])
    lone[1](x[1])
    lone[1](x[1])
    for group in ("activity of 0", "activity of 2"):
        for key, sums in method.state[group].items():
            expected = torch.stack([each.state[group][key] for each in methods])
            torch.testing.assert_close(sums, expected, rtol=1e-12, atol=0)


# Errors.


def test_a_network_without_hidden_units_is_refused():
    with pytest.raises(ValueError, match=r"hidden units.*got none \('' reaches the network's output\)|got none"):
        ReDo(nn.Linear(3, 2))
    with pytest.raises(ValueError, match="got none"):
        ReDo(perceptron(), roles={"0.weight": None, "2.weight": None})


def test_an_optimizer_with_unknown_state_is_named_before_anything_changes():
    network = perceptron()
    optimizer = torch.optim.Adafactor(network.parameters(), lr=0.0)
    ReDo(network, every=1).attach(optimizer)
    before = copy.deepcopy(network)
    with pytest.raises(ValueError, match=r"'(row_var|col_var|variance)' of shape .* for '0\.(weight|bias)'"):
        train(network, optimizer, next(batches(1)))
    assert all(torch.allclose(a, b) for a, b in zip(network.parameters(), before.parameters(), strict=True))


def test_without_activations_it_says_so():
    network = perceptron()
    optimizer = OPTIMIZERS["sgd"](network)
    ReDo(network, every=1).attach(optimizer)
    before = copy.deepcopy(network)
    with pytest.raises(RuntimeError, match="expected activations since the last step"):
        train(network.eval(), optimizer, next(batches(1)))
    assert torch.equal(network[0].bias == 0, before[0].bias == 0)


def test_a_period_below_one_is_refused():
    with pytest.raises(ValueError, match="every=0"):
        ReDo(perceptron(), every=0)


def test_what_was_seen_at_strength_0_does_not_count_later():
    network = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        network[0].bias.zero_()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    method = ReDo(network, strength=0.0, every=1).attach(optimizer)
    for strength, sign in ((0.0, 1), (0.0, 1), (0.1, -1)):
        method.strength = strength
        network(sign * torch.ones(4, 1)).sum().backward()
        optimizer.step()
    assert (network[2].weight == 0).tolist() == [[True, False]], "the first unit was silent in the last step"


def test_a_score_at_the_threshold_is_dormant():
    network = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        network[0].weight.zero_()
        network[0].bias.copy_(torch.tensor([1.0, 3.0]))  # scores 0.5 and 1.5
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    ReDo(network, strength=0.5, every=1).attach(optimizer)
    network(torch.randn(4, 2)).sum().backward()
    optimizer.step()
    assert network[0].bias.tolist() == [0.0, 3.0]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (ReDo, {"every": 1}),
        (ContinualBackprop, {"maturity": 0, "strength": 0.01, "decay": 0.5}),
        (SelfNormalizedResets, {"every": 1, "patience": 2}),
    ],
)
def test_a_step_that_saw_an_overflow_only_is_none(kind, options):
    network = perceptron()
    dtype = network[0].weight.dtype
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    method = kind(network, **options).attach(optimizer)
    network(torch.randn(8, 4, dtype=dtype)).sum().backward()
    optimizer.step()
    before, state = copy.deepcopy(network), method.state_dict()
    for _ in range(3):
        network(torch.full((8, 4), math.inf, dtype=dtype)).sum()
        optimizer.step()
    assert all(map(torch.equal, network.parameters(), before.parameters()))
    for group in ("0", "2"):
        for key in {"silent", "utility", "mean"} & state.get(group, {}).keys():
            assert torch.equal(method.state[group][key], state[group][key])


def test_a_reset_that_a_skipped_step_missed_comes_in_the_next_one():
    network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    with torch.no_grad():
        network[0].weight[0] = -1.0
        network[0].bias[0] = -100.0  # a dormant unit
    optimizer = torch.optim.Adam(network.parameters(), lr=0.0, fused=True)
    ReDo(network, every=2).attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    biases = []
    for step in range(1, 4):
        optimizer.zero_grad()
        scaler.scale(network(torch.rand(8, 4)).sum() * (math.inf if step == 2 else 1)).backward()
        scaler.step(optimizer)
        scaler.update()
        biases.append(network[0].bias[0].item())
    assert biases == [-100.0, -100.0, 0.0]


def test_a_single_example_without_a_batch_is_each_members_own():
    population = Population(perceptron, [0, 1])
    lone = [population.member(index) for index in range(2)]
    methods = [ReDo(network, every=1) for network in (population, *lone)]
    for method in methods:
        method.observe()
    x = torch.randn(2, 4, dtype=torch.float64)
    for network, given in ((population, x), *zip(lone, x, strict=True)):
        network(given)
    for group in ("activity of 0", "activity of 2"):
        for key, sums in methods[0].state[group].items():
            expected = torch.stack([method.state[group][key] for method in methods[1:]])
            torch.testing.assert_close(sums, expected, rtol=1e-12, atol=0)
