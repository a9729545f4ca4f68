"""The plasticity test: what the copies do, what stays untouched, and the verdicts."""

import copy
import gc
import random
import weakref
from contextlib import nullcontext

import numpy as np
import pytest
import scipy
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import supple
from supple.diagnostics.verdict import AS_IT_IS, FRESH_NETWORK, FRESH_OPTIMIZER, Difference, PlasticityTest
from support.keepers import Keeper


def loss(network, batch):
    x, y = batch
    return cross_entropy(network(x), y)


def make(device="cpu"):
    torch.manual_seed(3)
    layers = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3)
    return nn.Sequential(*layers).to(device)


def batches(count=8, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(count, 10, 6, generator=generator), torch.randint(3, (count, 10), generator=generator)
    return list(zip(x.to(device), y.to(device), strict=True))


def trained(network, optimizer, steps=5):
    for batch in batches(steps, next(network.parameters()).device):
        optimizer.zero_grad()
        loss(network, batch).backward()
        optimizer.step()
    return network, optimizer


def adam(network):
    return torch.optim.Adam(network.parameters(), lr=1e-2)


def short(network, optimizer, **options):
    options = {"steps": 12, "repeats": 2, "progress": False} | options
    return supple.plasticity_test(
        network, options.pop("loss", loss), options.pop("batches", batches()), optimizer=optimizer, **options
    )


def test_copies_train_as_loops_of_ones_own_would(device):
    network, optimizer = make(device), None
    network[3].p = 0.0  # the loops below need not know where the test seeds
    network, optimizer = trained(network, adam(network))
    data = batches(device=device)
    curves = short(network, optimizer, batches=data, steps=12, fresh=make).curves
    for repeat in range(2):
        order = []
        for reading in range(2):
            torch.manual_seed(repeat + 1_000_003 * reading)
            order += torch.randperm(len(data)).tolist()
        for name, curve in curves.items():
            mine, mine_optimizer = copy.deepcopy((network, optimizer))
            if name == FRESH_NETWORK:
                mine = make(device)
                mine[3].p = 0.0
            if name != AS_IT_IS:
                mine_optimizer = adam(mine)
            expected = []
            for index in order[:12]:
                value = loss(mine, data[index])
                mine_optimizer.zero_grad()
                value.backward()
                mine_optimizer.step()
                expected.append(value.item())
            torch.testing.assert_close(curve[repeat], torch.tensor(expected, dtype=torch.float64))


def test_a_network_that_keeps_a_state_is_copied():
    network = Keeper("dictionary")
    network, optimizer = trained(network, adam(network))
    kept = network.kept["h"]
    assert short(network, optimizer).curves[AS_IT_IS].shape[0] == 2
    assert network.kept["h"] is kept


@pytest.mark.parametrize("training", [True, False])
def test_nothing_of_the_original_changes(training):
    network, optimizer = trained(network := make(), adam(network))
    method = supple.SpectralRegularizer(network, strength=0.1).attach(optimizer)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    trained(network, optimizer)
    scheduler.step()
    network.train(training)[1].train(False)
    loader = torch.utils.data.DataLoader(
        [batch for pair in batches() for batch in zip(*pair, strict=True)],
        batch_size=10,
        shuffle=True,
        generator=torch.Generator().manual_seed(5),
    )
    gradients = [parameter.grad for parameter in network.parameters()]
    values = [gradient.clone() for gradient in gradients]
    everything = [network.state_dict(), optimizer.state_dict(), method.state_dict(), scheduler.state_dict()]
    before = copy.deepcopy(everything)
    random.seed(7)  # earlier tests leave the states that copies are given
    np.random.seed(7)
    drawn = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist(), loader.generator.get_state()
    modes = [part.training for part in network.modules()]

    short(
        network,
        optimizer,
        batches=loader,
        schedulers=[scheduler],
        remedies={"perturb": lambda n, o: [p.data.mul_(random.random() + np.random.rand()) for p in n.parameters()]},
    )

    torch.testing.assert_close(everything, before, rtol=0, atol=0)
    assert [parameter.grad for parameter in network.parameters()] == gradients or all(
        parameter.grad is gradient for parameter, gradient in zip(network.parameters(), gradients, strict=True)
    )
    torch.testing.assert_close([parameter.grad for parameter in network.parameters()], values, rtol=0, atol=0)
    now = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist(), loader.generator.get_state()
    assert all(map(torch.equal, (drawn[0], drawn[3]), (now[0], now[3])))
    assert drawn[1:3] == now[1:3]
    assert [part.training for part in network.modules()] == modes
    assert scheduler.optimizer is optimizer
    assert method.steps == (5,)


def test_the_random_states_of_unused_gpus_do_not_change(monkeypatch):
    """A stand-in for two GPUs: torch seeds both, although the network is on the CPU."""
    network, states = make(), {0: "first", 1: "second"}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: states.update({0: seed, 1: seed}))
    monkeypatch.setattr(torch.cuda, "get_rng_state", states.get)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: states.update({device: state}))
    short(network, adam(network), steps=1)
    assert states == {0: "first", 1: "second"}


@pytest.mark.parametrize(
    "build",
    [
        torch.optim.Adagrad,  # fills its state when it is built
        torch.optim.LBFGS,  # needs a closure
        torch.optim.NAdam,
        lambda parameters, lr: torch.optim.SGD(parameters, lr, momentum=0.9),
        lambda parameters, lr: torch.optim.AdamW([{"params": [p], "lr": lr} for p in parameters], amsgrad=True),
    ],
)
def test_any_optimizer(build):
    network, optimizer = trained(network := make(), adam(network))
    optimizer = build(network.parameters(), lr=1e-2)
    for batch in batches(3):
        optimizer.step(lambda batch=batch: (optimizer.zero_grad(), value := loss(network, batch), value.backward())[1])
    curves = short(network, optimizer, steps=3).curves
    renewed = copy.deepcopy(network)
    torch.manual_seed(0)
    first = torch.randperm(8)[0]
    fresh = build(renewed.parameters(), lr=1e-2)
    assert all(torch.isfinite(curve).all() for curve in curves.values())
    assert fresh.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    assert not torch.equal(curves[AS_IT_IS], curves[FRESH_OPTIMIZER])
    torch.manual_seed(0)
    torch.randperm(8)
    torch.testing.assert_close(curves[FRESH_OPTIMIZER][0, 0].item(), loss(renewed, batches()[first]).item())


def test_attached_methods_act_on_the_copies_and_begin_anew_on_the_fresh_network():
    network, optimizer = trained(network := make(), adam(network))
    free = short(network, optimizer).curves
    supple.L2InitRegularizer(network, strength=0.3).attach(optimizer)
    held = short(network, optimizer).curves
    for name, curve in held.items():
        assert torch.equal(curve[:, 0], free[name][:, 0])
        assert not torch.equal(curve[:, 2:], free[name][:, 2:])

    seen = []

    class Seen(supple.L2InitRegularizer):
        def add_gradients(self, parameters, gradients, state, strength):
            seen.append((strength, max((parameters[n] - state[n]["initial"]).abs().max().item() for n in parameters)))

    network, optimizer = trained(network := make(), adam(network))
    method = Seen(network, 0.3).attach(optimizer)
    method.strength = 0.5
    with torch.no_grad():
        network[4].weight += 5.0
    short(network, optimizer, steps=1)
    assert [strength for strength, _ in seen] == [0.5] * 6
    assert [distance > 1 for _, distance in seen] == [True, True, False] * 2


def test_methods_on_parts_of_a_network_act_on_these_parts_of_a_fresh_one():
    seen = []

    class Seen(supple.L2InitRegularizer):
        def add_gradients(self, parameters, gradients, state, strength):
            seen.append((strength, {n: (parameters[n] - state[n]["initial"]).abs().max().item() for n in parameters}))

    network = make()
    network = nn.Sequential(network[:2], network[2:])
    optimizer = adam(network)
    Seen(network[0], 0.1, roles={"1.weight": None}).attach(optimizer)
    Seen(network[1], 0.2).attach(optimizer)
    with torch.no_grad():
        network[0][0].bias += 5.0
    short(network, optimizer, steps=1)
    parts = [(0.1, ["0.bias", "0.weight", "1.bias"]), (0.2, ["4.bias", "4.weight"])]
    assert [(strength, sorted(distances)) for strength, distances in seen] == parts * 6
    assert [distances["0.bias"] > 1 for _, distances in seen[::2]] == [True, True, False] * 2


def test_a_step_of_ones_own_and_several_optimizers():
    network = make()
    halves = [adam(network[0]), torch.optim.SGD(network[1:].parameters(), 0.1)]

    def step(network, optimizers, batch):
        assert isinstance(optimizers, tuple)
        assert {id(p) for o in optimizers for g in o.param_groups for p in g["params"]} == set(
            map(id, network.parameters())
        )
        value = loss(network, batch)
        for optimizer in optimizers:
            optimizer.zero_grad()
        value.backward()
        for optimizer in optimizers:
            optimizer.step()
        return value.detach().view(1)

    own = short(network, halves, loss=None, step=step).curves
    usual = short(network, halves).curves
    torch.testing.assert_close(own, usual)


@pytest.mark.parametrize("count", [1, 2])
def test_optimizers_inside_another_train_the_copies_but_are_handed_over_only_in_a_list(count):
    class Container:
        def __init__(self, optimizers):
            self.optimizers = optimizers

        def step(self):
            raise AssertionError("the inner ones take the steps")

        zero_grad = step

    network = make()
    parts = [network[:2], network[2:]] if count == 2 else [network]
    inner = [torch.optim.SGD(part.parameters(), 0.1) for part in parts]
    torch.testing.assert_close(short(network, Container(inner)).curves, short(network, inner).curves)
    for options in (
        {"loss": None, "step": lambda network, optimizer, batch: 0.0},
        {"remedies": {"nothing": lambda *_: None}},
    ):
        with pytest.raises(ValueError, match=f"Container that wraps SGD{', SGD' * (count - 1)}: pass the inner"):
            short(network, Container(inner), **options)
        short(network, inner, steps=1, **options)


def test_gradient_scaling_and_compiled_networks():
    network = make()
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    plain = short(network, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaled = short(torch.compile(network, backend="eager"), optimizer, scaler=scaler)
    torch.testing.assert_close(scaled.curves, plain.curves)


def test_frozen_parameters_stay_in_the_fresh_network_and_a_scheduler_continues():
    network = make()
    network[0].weight.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    seen = []

    def step(network, optimizer, batch):
        seen.append((network[0].weight.clone(), optimizer.param_groups[0]["lr"]))
        optimizer.step()
        return loss(network, batch).item()

    short(network, optimizer, loss=None, step=step, schedulers=[scheduler], steps=3)
    assert [lr for _, lr in seen] == [0.1, 0.05, 0.025] * 6
    assert all(torch.equal(weight, network[0].weight) for weight, _ in seen)


@pytest.mark.parametrize("attached", [(), (supple.SpectralRegularizer,), (supple.SelfNormalizedResets, supple.UPGD)])
@pytest.mark.parametrize("fails", [True, False])
def test_a_copy_is_freed_before_the_next_one_is_made(attached, fails):
    network = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = adam(network)
    for method in attached:
        method(network).attach(optimizer)
    copies = set()

    def watched(network, batch):
        copies.add(weakref.ref(network))
        assert sum(copy() is not None for copy in copies) == 1
        if fails and len(copies) == 4:
            raise KeyError("wind")
        return loss(network, batch)

    remedies = {"l2": lambda network, optimizer: supple.L2Regularizer(network).attach(optimizer)}
    gc.disable()  # it would free copies in reference cycles, at some time
    try:
        with pytest.raises(KeyError) if fails else nullcontext():
            short(network, optimizer, loss=watched, steps=2, remedies=remedies)
        assert len(copies) == (4 if fails else 8)
        assert not any(copy() for copy in copies)
    finally:
        gc.enable()


def test_it_stops_early_only_where_the_answer_is_clear():
    network, optimizer = trained(network := make(), adam(network))
    with torch.no_grad():
        network[4].weight.zero_(), network[0].weight.zero_(), network[1].weight.zero_(), network[1].bias.fill_(-1.0)
    result = short(network, optimizer, steps=60, repeats=9)
    assert len(result.curves[AS_IT_IS]) < 9
    assert result.verdict == "network"


def made(own, renewed, fresh, spread=0.01, start=2.0, repeats=5):
    generator = torch.Generator().manual_seed(0)

    def curve(last):
        return torch.cat(
            [torch.full((repeats, 9), start), last + spread * torch.randn(repeats, 1, generator=generator)], 1
        ).double()

    return PlasticityTest({AS_IT_IS: curve(own), FRESH_OPTIMIZER: curve(renewed), FRESH_NETWORK: curve(fresh)}, 0.05)


@pytest.mark.parametrize(
    ("result", "verdict", "words"),
    [
        (made(1.3, 1.3, 0.2), "network", "has lost plasticity: its loss ends at 1.29"),
        (made(1.9, 1.3, 0.2), "network", "the optimizer stalls too"),
        (made(1.9, 0.2, 0.2), "optimizer", "the optimizer is stalling"),
        (made(1.9, 0.35, 0.2, spread=0.05), "optimizer", "the optimizer is stalling"),
        (made(0.2, 0.2, 0.2), "nothing", "nothing is lost"),
        (made(0.2, 0.5, 0.25), "nothing", "nothing is lost"),  # as it is, it learns as well as a new one
        (made(0.1, 0.1, 0.5), "nothing", "it starts ahead because it knows part of this already"),
        (made(0.25, 0.25, 0.2), "nothing", "little is lost: the network's loss ends at 0.247, a fresh one's at 0.198"),
        (made(0.25, 0.25, 0.2), "nothing", "; the limit is 0.090, 5 % of what a fresh one learns)"),
        (made(0.3, 0.2, 0.9, spread=0.2), "nothing", "nothing is lost"),  # whatever the optimizer, which is not sure
        (made(0.35, 0.35, 0.2, spread=0.2), "undecided", "use more repeats"),
        (made(0.35, 0.28, 0.2, spread=0.001), "undecided", "but neither by the network (difference 0.08"),
        (made(1.9, 1.9, 2.0), "undecided", "does not learn either"),
        (made(float("nan"), float("inf"), 0.2), "network", "ends at 2.0"),
        (made(0.2, 0.2, float("nan")), "undecided", "does not learn either"),
        (made(0.2, 0.2, 0.2, start=float("inf")), "undecided", "does not learn either (inf to 0.20"),
        (made(0.2, 0.2, 0.2, start=float("nan")), "undecided", "does not learn either (nan to nan"),
    ],
)
def test_verdicts(result, verdict, words):
    assert result.verdict == verdict
    assert words in result.sentence()
    text = str(result)
    assert text.startswith(result.sentence()[:1].upper())
    assert max(map(len, text.split("\n\n")[1].splitlines())) <= 100
    assert result.to_dict()["verdict"] == verdict


@pytest.mark.parametrize(("slow", "says"), [(3, True), (1.02, False)])
def test_a_network_that_catches_up_is_said_to_learn_more_slowly(slow, says):
    """Both come from 2 to 0.2; the mean loss of the slow one is higher by more than the margin, or by less."""
    progress = torch.linspace(0, 1, 100).double()
    noise = 0.01 * torch.randn(2, 5, 1, generator=torch.Generator().manual_seed(0)).double()
    own, fresh = (
        2 - 1.8 * (rate * progress).clamp(max=1) + part for rate, part in zip((3, 3 * slow), noise, strict=True)
    )
    result = PlasticityTest({AS_IT_IS: own, FRESH_OPTIMIZER: own, FRESH_NETWORK: fresh}, 0.05)
    assert result.verdict == "nothing"
    assert ("it learns more slowly: its mean loss over all 100 steps is" in result.sentence()) == says
    assert ("the data are harder now" in result.sentence()) != says


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), 1e38])
def test_a_network_whose_first_loss_is_not_finite_does_worse_than_a_fresh_one(weight):
    network, optimizer = trained(network := make(), adam(network))
    with torch.no_grad():
        network[4].weight.fill_(weight)
    result = short(network, optimizer, steps=60, repeats=3, loss=lambda n, batch: loss(n, batch) + n[4].weight.norm())
    assert not result.curves[AS_IT_IS][:, 0].isfinite().any()
    assert result.verdict == "network"
    first = result.curves[FRESH_NETWORK][:, 0]
    for name in (AS_IT_IS, FRESH_OPTIMIZER):
        assert torch.equal(result.results[name], first)
    assert "nan" not in result.sentence()


@pytest.mark.parametrize(("confidence", "count"), [(0.95, 2), (0.99, 2), (0.95, 3), (0.99, 5), (0.95, 30)])
def test_intervals_are_students(confidence, count):
    values = torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(count))
    low, high = scipy.stats.t.interval(confidence, count - 1, values.mean(), scipy.stats.sem(values))
    assert Difference.of(values, confidence) == pytest.approx((values.mean().item(), low, high), rel=1e-4)


def test_the_chart_draws_every_copy():
    chart = made(1.3, 1.3, 0.2).chart().to_dict()
    assert {row["copy"] for row in next(iter(chart["datasets"].values()))} == {AS_IT_IS, FRESH_OPTIMIZER, FRESH_NETWORK}
    assert chart["title"] == "The network has lost plasticity"


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"batches": iter(batches())}, TypeError, "can be read again"),
        ({"batches": []}, ValueError, "at least one batch"),
        ({"repeats": 1}, ValueError, "2 repeats"),
        ({"steps": 0}, ValueError, "1 step"),
        ({"step": lambda network, optimizer, batch: 0.0}, TypeError, "both or none"),
        ({"loss": lambda network, batch: network(batch[0])}, TypeError, "return one number"),
        (
            {"loss": lambda network, batch: loss(OTHER, batch)},
            ValueError,
            "expected loss\\(network, batch\\) to depend",
        ),
        ({"loss": lambda network, batch: torch.zeros(())}, ValueError, "expected loss\\(network, batch\\) to depend"),
        ({"fresh": lambda: nn.Linear(6, 3)}, ValueError, "same architecture"),
    ],
)
def test_misuse(options, error, words):
    network = make()
    with pytest.raises(error, match=words):
        short(network, adam(network), **options)


def test_schedulers_that_need_the_loss_or_end():
    network = make()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    assert short(network, optimizer, schedulers=[plateau]).results
    one_cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=3)
    with pytest.raises(ValueError, match="expected a OneCycleLR with at least 4 steps left, got one with 3"):
        short(network, optimizer, schedulers=[one_cycle], steps=4)
    assert short(network, optimizer, schedulers=[one_cycle], steps=3).results


OTHER = make()


def test_a_network_that_cannot_draw_new_parameters_asks_for_fresh():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(6))

        def forward(self, x):
            return self.scale * x

    network = nn.Sequential(Scaled(), nn.Linear(6, 3))
    with pytest.raises(ValueError, match="fresh="):
        short(network, adam(network))
    population = supple.Population(make, [0, 1])
    with pytest.raises(TypeError, match="member"):
        short(population, adam(population))


def test_factors_of_lora_ask_for_fresh():
    """Peft sets one of them to zero. With two random ones the network would forget what it knows."""
    peft = pytest.importorskip("peft")
    network = peft.get_peft_model(
        nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), peft.LoraConfig(target_modules=["0", "2"], r=2)
    )
    with pytest.raises(ValueError, match=r"got the factors in .*, of which peft sets one to zero: pass fresh="):
        short(network, adam(network))


def test_the_fresh_network_has_new_statistics_in_a_norm_without_gains():
    seen = []

    class Norm(nn.BatchNorm1d):
        def forward(self, x):
            seen.append(self.running_mean.clone())
            return super().forward(x)

    network = nn.Sequential(nn.Linear(6, 5), Norm(5, affine=False), nn.ReLU(), nn.Linear(5, 3))
    network[1].running_mean.fill_(3.0)
    short(network, adam(network))
    assert any(not mean.any() for mean in seen), "the fresh network's"
    assert any((mean == 3).all() for mean in seen)


def test_progress_is_a_line_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr("supple.diagnostics.experiment.time.monotonic", iter(range(0, 10**6, 7)).__next__)
    network = make()
    short(network, adam(network), progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("plasticity test: repeat 1 of at most 2, the network and its optimizer, at most ")
    assert 10 < len(lines) < 20


def test_a_network_that_begins_above_the_fresh_one_keeps_its_own_first_loss():
    curves = {AS_IT_IS: [[3.0] * 10] * 3, FRESH_OPTIMIZER: [[3.0] * 10] * 3, FRESH_NETWORK: [[2.0] * 9 + [1.0]] * 3}
    result = PlasticityTest({name: torch.tensor(rows).double() for name, rows in curves.items()}, 0.05)
    assert result.results[AS_IT_IS].tolist() == [3.0] * 3


def test_slower_by_less_than_what_matters_is_not_told():
    """Means over all steps differ surely by half of what matters: 0.05 of 2.0 − 0.2."""
    middle = torch.tensor([0.045, 0.0451, 0.0449]).double()
    fresh = torch.tensor([[2.0, *[0.2] * 18, 0.2]] * 3).double()
    own = fresh + middle[:, None] * torch.tensor([0.0, *[20 / 18] * 18, 0.0]).double()
    result = PlasticityTest({AS_IT_IS: own, FRESH_OPTIMIZER: own, FRESH_NETWORK: fresh}, 0.05)
    assert result.verdict == "nothing"
    assert "slowly" not in result.sentence()


def test_it_stops_early_only_when_99_percent_sure(monkeypatch):
    monkeypatch.setattr(
        PlasticityTest, "verdict_at", lambda self, confidence: "network" if confidence < 0.99 else "undecided"
    )
    network = torch.nn.Linear(2, 1)
    batches = [(torch.randn(4, 2), torch.randn(4, 1))]
    result = supple.plasticity_test(
        network,
        lambda model, batch: (model(batch[0]) - batch[1]).square().mean(),
        batches,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        steps=2,
        repeats=4,
    )
    assert len(result.curves[FRESH_NETWORK]) == 4


@pytest.mark.parametrize("name", ["both", "network", "optimizer", "a fresh network"])
def test_remedies_have_names_of_their_own(name):
    network = make()
    with pytest.raises(ValueError, match=f"expected other names for remedies, got '{name}'"):
        short(network, adam(network), remedies={name: lambda network, optimizer: None})


def test_a_negative_margin_is_refused():
    network = make()
    with pytest.raises(ValueError, match="a margin of at least 0, got -1"):
        short(network, adam(network), margin=-1)


def test_an_optimizer_of_another_network_is_refused():
    with pytest.raises(ValueError, match="an optimizer of this network's parameters, got another"):
        short(make(), adam(make()))


@pytest.mark.parametrize("fresh", [None, lambda: nn.Linear(6, 3)], ids=["by its modules", "by a function"])
def test_each_repeat_has_a_fresh_network_of_its_own(fresh):
    """On the same batch, so that only the networks differ."""
    network = nn.Linear(6, 3)
    curves = short(network, adam(network), batches=batches(1), steps=1, repeats=3, fresh=fresh).curves
    assert len(set(curves[FRESH_NETWORK].flatten().tolist())) == 3
    assert len(set(curves[AS_IT_IS].flatten().tolist())) == 1


def test_three_repeats_are_the_fewest(monkeypatch):
    monkeypatch.setattr(PlasticityTest, "verdict_at", lambda self, confidence: "nothing")
    network = nn.Linear(6, 3)
    assert len(short(network, adam(network), steps=1, repeats=5).curves[FRESH_NETWORK]) == 3


def test_a_result_is_the_mean_over_the_last_tenth_of_the_steps():
    curve = torch.tensor([[9.0] * 27 + [3.0, 2.0, 1.0]] * 3).double()
    result = PlasticityTest(dict.fromkeys((AS_IT_IS, FRESH_OPTIMIZER, FRESH_NETWORK), curve), 0.05)
    assert all(values.tolist() == [2.0] * 3 for values in result.results.values())


def test_the_table_has_each_copys_difference_from_a_fresh_network():
    last = {AS_IT_IS: 1.5, FRESH_OPTIMIZER: 1.0, FRESH_NETWORK: 0.2, "remedy": 0.5}
    jitter = torch.tensor([[-0.001], [0.0], [0.001]]).double()
    curves = {name: torch.tensor([[2.0] * 9 + [value]] * 3).double() + jitter for name, value in last.items()}
    lines = str(PlasticityTest(curves, 0.05)).splitlines()[-4:]
    shown = [(line.split("  ")[0], line.partition(", 95 %")[0].split()[-1]) for line in lines]
    assert shown == [(AS_IT_IS, "1.300"), (FRESH_OPTIMIZER, "0.800"), (FRESH_NETWORK, "0.200"), ("remedy", "0.300")]


def test_the_chart_shows_mean_losses_in_the_middle_of_their_steps():
    curves = torch.arange(200.0).repeat(3, 1) + torch.tensor([[0.0], [1.0], [2.0]])
    chart = PlasticityTest(dict.fromkeys((AS_IT_IS, FRESH_OPTIMIZER, FRESH_NETWORK), curves.double()), 0.05).chart()
    rows = [row for row in next(iter(chart.to_dict()["datasets"].values())) if row["copy"] == FRESH_NETWORK]
    assert [(row["step"], row["loss"]) for row in rows[:2]] == [(2, 2.5), (6, 6.5)]
    assert len(rows) == 50


def test_copies_with_a_remedy_train_with_a_fresh_optimizer_and_are_held_against_a_fresh_network():
    network, optimizer = trained(network := make(), adam(network))
    result = short(network, optimizer, remedies={"nothing done": lambda network, optimizer: None})
    assert torch.equal(result.curves["nothing done"], result.curves[FRESH_OPTIMIZER])
    assert not torch.equal(result.curves["nothing done"], result.curves[AS_IT_IS])
    assert result.differences["nothing done"] == result.differences["network"] != result.differences["both"]


@pytest.mark.parametrize("training", [True, False])
def test_copies_are_in_training_mode_and_keep_the_modes_of_a_network_in_training(training):
    network, optimizer = trained(network := make(), adam(network))
    network.train(training)[1].eval()  # a frozen norm, if the network is in training
    modes = set()

    def noted(network, batch):
        modes.add(tuple(part.training for part in network.modules()))
        return loss(network, batch)

    short(network, optimizer, loss=noted)
    assert modes == {(True, True, not training, True, True, True)}


def test_differences_within_the_margin_are_no_findings():
    """The margin is 0.09: 0.05 more by the optimizer is no stalling, 0.05 less than a fresh network no head start."""
    lost, kept = made(1.35, 1.3, 0.2), made(0.15, 0.15, 0.2)
    assert (lost.verdict, kept.verdict) == ("network", "nothing")
    assert 0 < lost.differences["optimizer"].low < lost.differences["optimizer"].high < lost.threshold
    assert "stalls too" not in lost.sentence()
    assert -kept.threshold < kept.differences["both"].low < kept.differences["both"].high < 0
    assert kept.sentence().endswith("; if its loss was lower before, the data are harder now")


def test_gradient_scaling_reaches_every_optimizer():
    """The scale is a power of two, so that all steps are those without it."""
    network = make()
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in (network[:2], network[4])]
    plain = short(network, optimizers).curves
    scaled = short(network, optimizers, scaler=torch.amp.GradScaler("cpu", init_scale=1024.0)).curves
    for name, curve in plain.items():
        torch.testing.assert_close(scaled[name], curve)
