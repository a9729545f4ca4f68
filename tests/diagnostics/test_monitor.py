"""What the monitor says, and when."""

import copy
import json
import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from supple import PlasticityMonitor, Population, SpectralRegularizer
from supple.diagnostics import DIAGNOSTICS, Diagnostic, Inspection, Metric
from support.probed_networks import NETWORKS, batch, network_and_probe, perceptron, step, train

# What it says.


@pytest.mark.parametrize("name", NETWORKS)
def test_a_flat_dictionary_of_floats_for_every_network(name, device):
    network, *probe = network_and_probe(name)
    monitor = PlasticityMonitor(network.to(device), tuple(tensor.to(device) for tensor in probe))
    first, second = monitor.measure(), monitor.measure()
    assert all(type(value) is float for value in second.values())
    assert not any(math.isnan(value) for value in second.values())
    assert {key for key in second if "/" not in key} == DIAGNOSTICS.keys()
    assert {key.partition("/")[0] for key in second.keys() - first.keys()} == {"representation_change"}
    assert second.items() >= first.items()
    assert second["representation_change"] == second["distance_from_initialization"] == 0
    assert json.loads(json.dumps(second)) == second


def test_names_of_layers():
    found = PlasticityMonitor(nn.Sequential(nn.Linear(2, 2), nn.MultiheadAttention(2, 1))).measure()
    assert [key for key in found if key.startswith("spectral_norm")] == [
        "spectral_norm",
        "spectral_norm/0",
        "spectral_norm/1.in_proj_weight",
        "spectral_norm/1.out_proj",
    ]
    assert "weight_norm/0.bias" in found


def test_every_value_is_the_diagnostics_own(device):
    network, x, y = network_and_probe("residual")
    network.to(device)
    monitor = PlasticityMonitor(network, (x, y))
    monitor.measure()
    before = Inspection(network, x, y)
    previous, initial = before.activations, {name: v.clone() for name, v in before.parameters.items()}
    train_x, train_y = torch.randn(5, 2, 6, 6), torch.randint(3, (5,))
    step(network, torch.optim.SGD(network.parameters(), lr=0.1), train_x, train_y)
    inspection = Inspection(network, x, y, initial=initial, previous=previous)
    expected = {
        f"{name}/{layer}" if layer else name: value.item()
        for name, diagnostic in DIAGNOSTICS.items()
        for layer, value in diagnostic(inspection).items()
    }
    assert monitor.measure() == expected
    assert expected["representation_change"] > 0
    assert expected["distance_from_initialization"] > 0


def test_the_definitions_are_printed():
    for name, diagnostic in DIAGNOSTICS.items():
        documentation = diagnostic.function.__doc__
        assert documentation is not None, name
        assert documentation.strip(), name
    assert "without the minus sign and without exp" in DIAGNOSTICS["effective_rank"].function.__doc__.replace(
        "\n   ", ""
    )


@pytest.mark.parametrize(
    ("probe", "absent"),
    [
        (None, {"activations", "gradients", "gradient_singular_values"}),
        ((torch.ones(3, 4), None), {"gradients", "gradient_singular_values"}),
    ],
    ids=["without", "without labels"],
)
def test_what_the_probe_allows(probe, absent):
    monitor = PlasticityMonitor(perceptron(), probe)
    monitor.measure()
    allowed = {name for name, diagnostic in DIAGNOSTICS.items() if not absent & set(diagnostic.needs)}
    assert {key for key in monitor.measure() if "/" not in key} == allowed == set(monitor.diagnostics)
    with pytest.raises(ValueError, match="gradient_norm"):
        PlasticityMonitor(perceptron(), probe, diagnostics=["gradient_norm"])


@pytest.mark.parametrize("probe", [batch()[0], {"x": batch()[0], "y": batch()[1]}], ids=["inputs", "by name"])
def test_a_probe_is_a_pair(probe):
    with pytest.raises(TypeError, match=r"pass probe=\(inputs, labels\)"):
        PlasticityMonitor(perceptron(), probe)


def test_chosen_diagnostics():
    monitor = PlasticityMonitor(perceptron(), diagnostics=["lipschitz_bound"])
    assert list(monitor.measure()) == ["lipschitz_bound"]
    assert monitor.state_dict()["initial"] == {}, "nothing is kept that is not asked for"
    with pytest.raises(ValueError, match="did you mean 'spectral_norm'"):
        PlasticityMonitor(perceptron(), diagnostics=["spectral_norms"])
    with pytest.raises(ValueError, match="every=0"):
        PlasticityMonitor(perceptron(), every=0)


def test_nothing_to_measure(device):
    changes = PlasticityMonitor(perceptron().to(device), batch(), diagnostics=["representation_change"])
    assert changes.measure() == {}
    assert changes.measure()["representation_change"] == 0
    x, y = torch.randn(9, 3), torch.randint(2, (9,))
    shallow = PlasticityMonitor(nn.Linear(3, 2).to(device), (x, y), diagnostics=["dormant_units"])
    members = PlasticityMonitor(
        Population(lambda: nn.Linear(3, 2), seeds=[0, 1]).to(device),
        (x.expand(2, 9, 3), y.expand(2, 9)),
        diagnostics=["dead_units"],
    )
    for monitor in (shallow, members, PlasticityMonitor(perceptron(), diagnostics=[])):
        assert monitor.measure() == monitor.latest == {}
        assert monitor.table() == "nothing measured"


def test_diagnostics_of_ones_own_are_given_what_they_need(monkeypatch, device):
    def moved(previous, activations, parameters, initial):
        return {"": torch.tensor([(activations[name] - h).norm() for name, h in previous.items()]).sum()}

    monkeypatch.setitem(DIAGNOSTICS, "moved", Diagnostic(function=moved, metric=Metric(title="moved")))
    network = perceptron().to(device)
    monitor = PlasticityMonitor(network, batch(), diagnostics=["moved"])
    assert monitor.state_dict()["initial"].keys() == Inspection(network).parameters.keys()
    assert monitor.measure() == {}, "there is nothing before the first look"
    assert monitor.measure() == {"moved": 0}
    network[0].weight.data.add_(1)
    assert monitor.measure()["moved"] > 0
    with pytest.raises(ValueError, match=r"expected activations for moved.*probe=\(inputs, None\)"):
        PlasticityMonitor(network, diagnostics=["moved"])
    assert "moved" not in PlasticityMonitor(network).diagnostics


@pytest.mark.parametrize(
    ("diagnostic", "message"),
    [
        (lambda parameters: {"": 1.0}, r"weird to return tensors of shape \(\) by layer, got float"),
        (lambda parameters: torch.ones(()), r"got \(\): return"),
        (lambda parameters: {"": torch.ones(3)}, r"got \(3,\)"),
        (lambda parameters: None, "got NoneType"),
    ],
)
def test_a_diagnostic_of_ones_own_that_returns_something_else_is_named(monkeypatch, diagnostic, message):
    diagnostic.__name__ = "weird"
    monkeypatch.setitem(DIAGNOSTICS, "weird", Diagnostic(function=diagnostic, metric=Metric(title="weird")))
    with pytest.raises(TypeError, match=message):
        PlasticityMonitor(perceptron(), diagnostics=["weird"]).measure()


def test_a_need_that_there_is_not_is_named(monkeypatch):
    weird = Diagnostic(function=lambda weights: {}, metric=Metric(title="weird"))
    monkeypatch.setitem(DIAGNOSTICS, "weird", weird)
    with pytest.raises(ValueError, match="got 'weights'"):
        PlasticityMonitor(perceptron())
    monkeypatch.setitem(DIAGNOSTICS, "weird", lambda inspection: {})
    with pytest.raises(TypeError, match=r"expected a Diagnostic as DIAGNOSTICS\['weird'\], got function"):
        PlasticityMonitor(perceptron())


X, Y = torch.zeros(9, 4), torch.zeros(9, dtype=torch.int64)


@pytest.mark.parametrize(
    ("network", "probe", "message"),
    [
        (perceptron, (X[:0], Y[:0]), r"a probe with examples, got a tensor of shape \(0, 4\)"),
        (perceptron, (X[:0], None), r"a probe with examples, got a tensor of shape \(0, 4\)"),
        (perceptron, (X, Y[:0]), r"a probe with examples, got a tensor of shape \(0,\)"),
        (perceptron, ((), Y), "inputs with a tensor in them, got tuple"),
        (perceptron, (X.numpy(), Y), "inputs with a tensor in them, got ndarray"),
        (perceptron, (None, Y), "inputs with the labels, got None"),
        (perceptron, (X, Y[:5]), r"as many examples.*got shapes \(9, 4\), \(5,\)"),
        (perceptron, (X, Y[0]), r"as many examples.*got shapes \(9, 4\), \(\)"),
        (
            lambda: Population(perceptron, [0, 1]),
            (X, Y),
            r"a probe of shape \(2, batch, \.\.\.\) for a population of 2.*\(9, 4\)",
        ),
        (
            lambda: Population(perceptron, [0, 1]),
            (X.expand(2, 9, 4), Y),
            r"a probe.* of 2 members, got a tensor of shape \(9,\)",
        ),
        (lambda: perceptron().to("meta"), None, r"parameters with values, got none \(the meta device\) in '0\.weight'"),
    ],
)
def test_a_probe_that_does_not_fit_is_named_when_the_monitor_is_built(network, probe, message):
    with pytest.raises(ValueError, match=f"expected {message}"):
        PlasticityMonitor(network(), probe)


def test_labels_that_are_not_of_examples_allow_what_is_of_the_whole_batch(device):
    found = PlasticityMonitor(
        perceptron().to(device),
        (X, torch.ones(3, 4)),
        diagnostics=["gradient_norm"],
        loss=lambda outputs, labels: outputs.mean() * labels.sum(),
    )
    assert found.measure()["gradient_norm"] > 0


class Odd(nn.Module):
    """Writes into its inputs, takes what is no tensor besides, maps over the batch by itself, has several heads."""

    def __init__(self):
        super().__init__()
        self.inner, self.heads = perceptron(), nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 1)])

    def forward(self, x, scale=1.0, mask=None):
        h = torch.func.vmap(self.inner)(x.mul_(scale))
        return Outputs(*[head(h) for head in self.heads])


class Outputs:
    """What torch does not know to be a structure with tensors in it."""

    def __init__(self, logits, value):
        self.logits, self.value = logits, value


def odd_loss(outputs, labels):
    loss = cross_entropy(outputs.logits, labels["class"]) + mse_loss(outputs.value, labels["value"])
    return loss if loss.item() > 0 else -loss


def test_an_odd_network_is_measured_as_a_plain_one(device):
    torch.manual_seed(0)
    odd, (x, y) = Odd().to(device), batch()
    plain = nn.Sequential(odd.inner, odd.heads[0])
    probe = {"x": x.clone(), "scale": 2.0, "mask": None}
    labels = {"class": y, "value": torch.zeros(len(x), 1)}
    monitor = PlasticityMonitor(odd, (probe, labels), loss=odd_loss)
    assert monitor.measure().items() <= monitor.measure().items(), "the same each time"
    assert torch.equal(probe["x"], x)
    expected = PlasticityMonitor(plain, (2 * x, y)).measure()
    assert monitor.latest["dormant_units/inner.3"] == pytest.approx(expected["dormant_units/0.3"])
    assert monitor.latest["dormant_units/heads.0"] == pytest.approx(expected["dormant_units/1"])
    assert monitor.latest["gradient_effective_rank"] > 1


def test_a_probe_from_inference_mode(device):
    network, (x, y) = perceptron().to(device), batch()
    with torch.inference_mode():
        probe = x.clone(), y.clone()
    assert PlasticityMonitor(network, probe).measure() == PlasticityMonitor(network, (x, y)).measure()


@pytest.mark.parametrize(
    ("loss", "got"),
    [
        (lambda outputs, labels: cross_entropy(outputs, labels, reduction="none"), r"a tensor of shape \(9,\)"),
        (lambda outputs, labels: 3.0, "float"),
    ],
)
def test_a_loss_that_is_no_number_is_named(loss, got):
    with pytest.raises(ValueError, match=f"expected a loss that returns one number as a tensor, got {got}"):
        PlasticityMonitor(perceptron(), batch(), loss=loss).measure()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_arguments_of_the_wrong_kind():
    for every in (2.5, "3"):
        with pytest.raises(ValueError, match=f"every={every!r}"):
            PlasticityMonitor(perceptron(), every=every)
    for name in ("loss", "callback"):
        with pytest.raises(TypeError, match=f"expected a function as {name}, got str"):
            PlasticityMonitor(perceptron(), **{name: "print"})
    with pytest.raises(ValueError, match=r"write \['weight_norm'\]"):
        PlasticityMonitor(perceptron(), diagnostics="weight_norm")
    with pytest.raises(TypeError, match=r"got RecursiveScriptModule from torch\.jit"):
        PlasticityMonitor(torch.jit.script(nn.Linear(2, 2)))


def test_a_network_without_parameters_and_one_of_torch_fx(device):
    assert PlasticityMonitor(nn.ReLU(), batch()).measure() == {}
    network, probe = perceptron().to(device), batch()
    expected = PlasticityMonitor(network, probe).measure()
    found = PlasticityMonitor(torch.fx.symbolic_trace(network), probe).measure()
    assert found == pytest.approx(expected, rel=1e-5)


def test_sparse_gradients(device):
    embedding = nn.Sequential(nn.Embedding(7, 4, sparse=True), nn.Flatten(), nn.Linear(12, 3)).to(device)
    probe = (torch.randint(7, (9, 3)), torch.randint(3, (9,)))
    found = PlasticityMonitor(embedding, probe).measure()
    embedding[0].sparse = False
    assert found == PlasticityMonitor(embedding, probe).measure()


def test_an_inspection_without_what_a_diagnostic_needs():
    with pytest.raises(ValueError, match="previous for representation_change"):
        DIAGNOSTICS["representation_change"](Inspection(perceptron(), torch.ones(3, 4)))


def test_weights_that_are_not_numbers_give_values_that_are_not(device):
    network, x, y = network_and_probe("residual")
    network.to(device)
    monitor = PlasticityMonitor(network, (x, y))
    monitor.measure()
    with torch.no_grad():
        network.conv1.weight[0, 0, 0, 0] = math.nan
    found = monitor.measure()
    assert all(math.isnan(found[name]) for name in DIAGNOSTICS)
    assert math.isnan(found["stable_rank/conv1"])
    assert not math.isnan(found["stable_rank/conv2"])
    assert "nan" in monitor.table()


def test_a_network_of_zeros(device):
    network, x, y = network_and_probe("residual")
    network.to(device)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    monitor = PlasticityMonitor(network, (x, y))
    monitor.measure()
    found = monitor.measure()
    zero = {"spectral_norm", "smallest_singular_value", "weight_norm", "stable_rank", "effective_rank"}
    zero |= {"lipschitz_bound", "distance_from_initialization", "feature_rank", "representation_change"}
    assert {name: found[name] for name in zero} == dict.fromkeys(zero, 0.0)
    assert found["dormant_units"] == found["dead_units"] == 1
    assert found["condition_number"] == math.inf
    assert found["gradient_norm"] > 0, "the last bias still learns"
    assert found["gradient_effective_rank/conv1"] == 0


def test_a_member_of_a_population_has_the_names_of_a_lone_network(device):
    population = Population(perceptron, seeds=[0, 1, 2]).to(device)
    x, y = torch.randn(3, 9, 4), torch.randint(3, (3, 9))
    together = PlasticityMonitor(population, (x, y))
    together.measure()
    found = together.measure()
    for index in range(3):
        alone = PlasticityMonitor(population.member(index), (x[index], y[index]))
        alone.measure()
        expected = alone.measure()
        of_member = {
            key.removeprefix(f"member{index}/"): v for key, v in found.items() if key.startswith(f"member{index}/")
        }
        assert list(of_member) == list(expected)
        assert of_member == pytest.approx(expected, rel=1e-6)
    assert len(found) == 3 * len(expected)
    spectral = sum(found[f"member{index}/spectral_norm"] for index in range(3)) / 3
    assert f"{spectral:.4g}" in together.table()


# When.


def test_attached_it_measures_every_so_many_steps_and_tells(device):
    network, told = perceptron().to(device), []
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    monitor = PlasticityMonitor(network, batch(), every=3, callback=told.append)
    assert monitor.latest == {}
    assert monitor.attach(optimizer) is monitor
    train(network, optimizer, 7)
    assert len(told) == 2
    assert told[1] == monitor.latest
    assert told[1]["distance_from_initialization"] > told[0]["distance_from_initialization"] > 0
    with pytest.raises(RuntimeError, match="detach"):
        monitor.attach(optimizer)
    monitor.detach()
    train(network, optimizer, 3)
    assert len(told) == 2
    monitor.attach(torch.optim.SGD(network.parameters(), lr=0.1))


def test_told_of_each_step_it_measures_as_if_attached():
    told = []
    monitor = PlasticityMonitor(perceptron(), every=2, diagnostics=["weight_norm"], callback=told.append)
    measured = [monitor.step() for _ in range(4)]
    assert measured == [None, told[0], None, told[1]]
    assert monitor.steps == 4
    monitor.attach(torch.optim.SGD(monitor.model.parameters()))
    with pytest.raises(RuntimeError, match="not attached, got one that counts its optimizer's steps: detach"):
        monitor.step()
    assert monitor.steps == 4


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda parts: pickle.loads(pickle.dumps(parts))])
def test_a_copy_of_network_optimizer_and_monitor_goes_on_by_itself(duplicate, device):
    network = perceptron().to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    monitor = PlasticityMonitor(network, every=3).attach(optimizer)
    train(network, optimizer, 2)
    other, its_optimizer, its_monitor = duplicate((network, optimizer, monitor))
    train(other, its_optimizer, 1)
    assert its_monitor.latest["weight_norm"] == PlasticityMonitor(other).measure()["weight_norm"]
    assert monitor.latest == {}, "the two share nothing"
    its_monitor.detach()
    again = duplicate((other, its_optimizer, its_monitor))
    train(*again[:2], 3)
    assert again[2].latest == its_monitor.latest, "what is detached stays so"
    train(network, optimizer, 1)
    assert monitor.latest["weight_norm"] == PlasticityMonitor(network).measure()["weight_norm"]


class Failing(torch.optim.SGD):
    """Its own step, which fails at first, calls torch's: torch runs the hooks around both."""

    has_failed = False

    def step(self, closure=None):
        if not self.has_failed:
            self.has_failed = True
            raise MemoryError
        super().step(closure)


def test_a_step_counts_once(device):
    network = perceptron().to(device)
    optimizer = Failing(network.parameters(), lr=0.1)
    monitor = PlasticityMonitor(network).attach(optimizer)
    with pytest.raises(MemoryError):
        optimizer.step()
    train(network, optimizer, 2)
    assert monitor.steps == 2


class Wrapper(torch.optim.Optimizer):
    """As Accelerate's: an optimizer without hooks of its own, whose step is that of the one inside."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def zero_grad(self):
        self.optimizer.zero_grad()

    def step(self):
        self.optimizer.step()


def test_an_optimizer_inside_others(device):
    network = perceptron().to(device)
    optimizer = Wrapper(Wrapper(torch.optim.SGD(network.parameters(), lr=0.1)))
    monitor = PlasticityMonitor(network, every=2).attach(optimizer)
    train(network, optimizer, 2)
    assert monitor.latest["weight_norm"] == PlasticityMonitor(network).measure()["weight_norm"]


def test_attached_to_no_optimizer():
    monitor = PlasticityMonitor(perceptron())
    with pytest.raises(TypeError, match="got Linear: attach to each optimizer"):
        monitor.attach(nn.Linear(2, 2))
    monitor.attach(torch.optim.SGD(monitor.model.parameters(), lr=0.1))


def test_beside_a_method_it_sees_what_the_step_has_left(device):
    network = perceptron().to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    SpectralRegularizer(network, strength=1.0, decoupled=True).attach(optimizer)
    monitor = PlasticityMonitor(network, every=1).attach(optimizer)
    train(network, optimizer, 3)
    assert monitor.latest["weight_norm"] == PlasticityMonitor(network).measure()["weight_norm"]


@pytest.mark.parametrize("members", [0, 2])
def test_a_resumed_run_says_the_same(members, tmp_path, device):
    network = (Population(perceptron, seeds=range(members)) if members else perceptron()).to(device)
    x, y = (tensor.to(device) for tensor in batch())
    if members:
        x, y = x.expand(members, *x.shape), y.expand(members, *y.shape)

    def some_steps(network, monitor, steps):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        monitor.attach(optimizer)
        for _ in range(steps):
            optimizer.zero_grad()
            network(x).square().mean().backward()
            optimizer.step()
        monitor.detach()

    monitor = PlasticityMonitor(network, (x, y), every=4)
    some_steps(network, monitor, 6)
    torch.save(monitor.state_dict(), tmp_path / "monitor.pt")
    stopped = copy.deepcopy(network)
    some_steps(network, monitor, 3)

    resumed = PlasticityMonitor(stopped, (x, y), every=4)
    resumed.load_state_dict(torch.load(tmp_path / "monitor.pt"))
    some_steps(stopped, resumed, 3)
    assert "representation_change" in resumed.latest or members
    assert resumed.latest == monitor.latest
    assert resumed.latest


def test_a_state_is_a_copy_and_must_fit(device):
    network = perceptron().to(device)
    monitor = PlasticityMonitor(network, batch())
    state = monitor.state_dict()
    state["initial"]["0"].zero_()
    assert monitor.measure()["distance_from_initialization"] == 0
    with pytest.raises(ValueError, match="the same architecture"):
        PlasticityMonitor(nn.Linear(2, 2)).load_state_dict(state)


@pytest.mark.parametrize("part", ["initial", "previous", ""])
def test_a_damaged_state_is_refused_and_changes_nothing(part, device):
    monitor, other = (PlasticityMonitor(perceptron().to(device), batch()) for _ in range(2))
    other.measure()
    before, state = str(monitor.state_dict()), other.state_dict()
    some = next(iter(state[part]))
    for wrong in (None, [], {**state, part: None}, {**state, part: {**state[part], some: [1.0]}}):
        with pytest.raises(TypeError, match=r"expected .*, got .*: load what"):
            monitor.load_state_dict(wrong)
    for steps in (None, torch.ones(2), torch.tensor(math.nan)):
        with pytest.raises(TypeError, match=r"expected a plain tensor of torch\.int64 for /steps"):
            monitor.load_state_dict({**state, "": {"steps": steps}})
    assert str(monitor.state_dict()) == before
    monitor.load_state_dict(state)


class Routed(nn.Module):
    """Two experts, of which each gets some of the examples, or none."""

    def __init__(self):
        super().__init__()
        self.enter, self.leave, self.first = nn.Linear(4, 6), nn.Linear(6, 3), 9
        self.experts = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])

    def forward(self, x):
        h = self.enter(x).relu()
        routed = zip(self.experts, (h[: self.first], h[self.first :]), strict=True)
        return self.leave(torch.cat([expert(part) for expert, part in routed if len(part)]).relu())


def test_experts_that_get_other_examples_are_left_out_of_the_change(device):
    network = Routed().to(device)
    monitor = PlasticityMonitor(network, (torch.randn(9, 4), None), diagnostics=["representation_change"])
    both = {"experts.0", "experts.1", "leave"}
    for first, compared in ((9, None), (9, both - {"experts.1"}), (5, {"leave"}), (5, both)):
        network.first = first
        measured = monitor.measure()
        names = {name.partition("/")[2] for name in measured if name.startswith("representation_change/")}
        assert names == (compared or set())


def test_a_network_that_has_grown_is_named(device):
    network = perceptron().to(device)
    monitor = PlasticityMonitor(network, batch(), diagnostics=["distance_from_initialization"])
    monitor.measure()
    network.extend([nn.ReLU(), nn.Linear(3, 5, device=device)])
    with pytest.raises(ValueError, match=f"'{len(network) - 1}'.*build a new monitor"):
        monitor.measure()


def test_a_head_that_has_grown_is_named():
    network = perceptron()
    monitor = PlasticityMonitor(network)
    network[-1] = nn.Linear(network[-1].in_features, 5)
    with pytest.raises(ValueError, match=f"'{len(network) - 1}'.*build a new monitor"):
        monitor.measure()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_inputs_are_cast_to_the_networks_type(dtype, device):
    network, (x, y) = perceptron().to(device, dtype), batch()
    cast, given = (PlasticityMonitor(network, (inputs, y)) for inputs in (x, x.to(dtype)))
    assert cast.measure() == given.measure()
    assert not any(math.isnan(value) for value in cast.measure().values())


def test_inputs_of_a_network_of_several_types_are_not_cast(device):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3, dtype=torch.bfloat16)

        def forward(self, x):
            assert x.dtype == torch.float32
            return self.last(self.first(x).relu().bfloat16())

    network, (x, y) = Mixed().to(device), batch()
    assert PlasticityMonitor(network, (x, y)).measure()


# For the eye.


@pytest.mark.parametrize("name", NETWORKS)
def test_the_table_shows_every_value_in_100_columns(name, device):
    network, x, y = network_and_probe(name)
    network.to(device)
    monitor = PlasticityMonitor(
        nn.ModuleDict({"a_rather_long_name_for_a_part_of_a_network": network})[
            "a_rather_long_name_for_a_part_of_a_network"
        ],
        (x, y),
    )
    monitor.measure()
    table = monitor.table()
    assert max(map(len, table.splitlines())) <= 100
    shown = table.split()
    for key, value in monitor.latest.items():
        assert f"{value:.4g}" in shown, key


def test_long_names_are_cut_where_they_begin():
    inner = nn.Linear(2, 2)
    for _ in range(12):
        inner = nn.Sequential(inner)
    long = nn.ModuleDict({"encoder_of_the_first_kind": inner, "b": nn.Linear(2, 2)})
    table = PlasticityMonitor(long).table()
    assert max(map(len, table.splitlines())) <= 100
    assert "…" in table
    assert "0.0.0.0.bias" in table
