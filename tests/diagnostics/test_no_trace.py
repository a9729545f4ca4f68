"""That a measurement leaves no trace in the network, whatever it is wrapped in."""

import copy
from collections import deque

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves

from supple import PlasticityMonitor, Population
from support.keepers import Keeper
from support.probed_networks import batch, perceptron, step, train


class Restless(nn.Module):
    """Counts its forward passes and draws random numbers, in evaluation mode too."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x + 0 * torch.rand_like(x)


def restless():
    return nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.ReLU(inplace=True), Restless(), nn.Linear(6, 3)
    )


class Shell(nn.Module):
    """torch does not compile its own Sequential in place."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x)


def bits(network):
    return {
        "tensors": {name: tensor.clone() for name, tensor in network.state_dict(keep_vars=False).items()},
        "gradients": {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None},
        "random": {"cpu": torch.get_rng_state()}
        | {f"cuda:{i}": torch.cuda.get_rng_state(i) for i in range(torch.cuda.device_count())},
    }


def assert_same_bits(one, other):
    for kind, tensors in one.items():
        assert tensors.keys() == other[kind].keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, other[kind][name]), f"{kind} {name}"


@pytest.mark.parametrize("members", [0, 2])
@pytest.mark.parametrize("training", [True, False])
def test_nothing_is_left_behind(members, training, device):
    network = (Population(restless, seeds=range(members)) if members else restless()).to(device)
    x, y = (tensor.to(device) for tensor in batch())
    if members:
        x, y = x.expand(members, *x.shape), y.expand(members, *y.shape)
    network(x).sum().backward()
    network.train(training)
    module = network.stacked if members else network
    module[1].eval()  # a part whose mode differs
    modes = [part.training for part in network.modules()]
    before, probe = bits(network), (x.clone(), y.clone())
    monitor = PlasticityMonitor(network, (x, y))
    monitor.measure()
    monitor.measure()
    monitor.table()
    assert_same_bits(before, bits(network))
    assert torch.equal(x, probe[0])
    assert torch.equal(y, probe[1])
    assert [part.training for part in network.modules()] == modes
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in network.modules())
    assert all(parameter.is_leaf and parameter.requires_grad for parameter in network.parameters())


def test_nothing_is_left_behind_by_an_error(device):
    network = restless().to(device)
    before, modes = bits(network), [part.training for part in network.modules()]

    def broken(outputs, labels):
        raise ArithmeticError

    monitor = PlasticityMonitor(network, batch(), loss=broken, diagnostics=["gradient_effective_rank"])
    before = bits(network)
    with pytest.raises(ArithmeticError):
        monitor.measure()
    assert_same_bits(before, bits(network))
    assert [part.training for part in network.modules()] == modes
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in network.modules())


def test_training_with_it_gives_the_same_bits(device):
    results = []
    for every in (None, 2):
        torch.manual_seed(3)
        network = restless().to(device)
        optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
        if every:
            torch.manual_seed(4)
            probe = batch()
            PlasticityMonitor(network, probe, every=every).attach(optimizer)
        torch.manual_seed(5)
        train(network, optimizer, 6)
        results.append(bits(network))
    assert_same_bits(*results)


def test_nothing_happens_between_measurements(monkeypatch, device):
    network, optimizer_steps = perceptron().to(device), []
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    monitor = PlasticityMonitor(network, batch(), every=3).attach(optimizer)
    monkeypatch.setattr(monitor, "measure", lambda: optimizer_steps.append(monitor._steps))
    assert not any(part._forward_hooks or part._forward_pre_hooks or part._backward_hooks for part in network.modules())
    train(network, optimizer, 7)
    assert optimizer_steps == [3, 6]


def test_a_data_parallel_model_is_looked_at_inside():
    network, probe = perceptron(), batch()
    expected = PlasticityMonitor(network, probe).measure()
    assert PlasticityMonitor(nn.DataParallel(network), probe).measure() == expected


def test_a_distributed_model_is_looked_at_inside(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        network, (x, y) = perceptron(), batch()
        expected = PlasticityMonitor(network, (x, y)).measure()
        wrapped = DistributedDataParallel(network)
        optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
        monitor = PlasticityMonitor(wrapped, (x, y), every=1).attach(optimizer)
        assert monitor.measure() == expected
        train(wrapped, optimizer, 2)
        assert monitor.latest["distance_from_initialization"] > 0
        assert monitor.latest["spectral_norm"] == PlasticityMonitor(network).measure()["spectral_norm"]
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("how", ["whole", "in place", "a part"])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # by the compiler, at a graph that starts inside
def test_a_compiled_model_is_looked_at_inside_and_not_compiled_again(how, device):
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    torch._dynamo.reset()
    network, (x, y) = perceptron().to(device), batch()
    expected = PlasticityMonitor(network, (x, y)).measure()
    match how:
        case "whole":
            wrapped = torch.compile(network, backend=backend)
        case "in place":
            wrapped = Shell(network)
            wrapped.compile(backend=backend)
        case "a part":
            inner = torch.compile(nn.Sequential(*list(network)[2:]), backend=backend)
            wrapped = nn.Sequential(*list(network)[:2], inner)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.0)
    step(wrapped, optimizer, x, y)
    before = len(compiled)
    assert before > 0
    found = PlasticityMonitor(wrapped, (x, y)).measure()
    network_values = {key: value for key, value in found.items() if "/" not in key}
    assert network_values == pytest.approx({key: expected[key] for key in network_values})
    if how == "whole":
        assert found == expected
    step(wrapped, optimizer, x, y)
    assert len(compiled) == before


class Remembering(nn.Module):
    """Keeps its last output, as recurrent agents do."""

    def __init__(self):
        super().__init__()
        self.layer, self.h, self.pair = nn.Linear(3, 3), torch.zeros(3), None

    def forward(self, x):
        self.h = self.layer(x).detach()
        self.pair = (self.h, None)
        return self.layer(x)


def test_what_a_module_keeps_in_attributes_is_put_back():
    network = Remembering()
    monitor = PlasticityMonitor(network, (torch.randn(5, 3), torch.randn(5, 3)), loss=nn.functional.mse_loss)
    for _ in range(2):  # before the first forward pass, and after it
        h, pair = network.h, network.pair
        monitor.measure()
        assert network.h is h
        assert network.pair is pair
        network(torch.randn(5, 3))


class Recurrent(nn.Module):
    """Keeps what it computed in all the ways that a measurement can put back."""

    def __init__(self):
        super().__init__()
        self.layer, self.calls = nn.Linear(3, 3), 0
        self.written, self.last, self.past, self.names = torch.zeros(3), {"h": None}, [[torch.zeros(3)]], {"a"}
        self.line = deque([0], maxlen=3)

    def forward(self, x):
        self.calls += 1
        h = self.layer(x) + self.written + self.past[0][0]
        self.written.copy_(h.detach().mean(0))
        self.past[0][0] += 1
        self.past.append([h])
        self.last["h"] = self.new = h
        self.names.add(str(self.calls))
        self.line.append(self.calls)
        return h

    def state(self):
        tensors = [*tree_leaves(self.past), self.written, *tree_leaves(self.last)]
        values = [None if tensor is None else tensor.tolist() for tensor in tensors]
        return self.calls, values, set(self.names), list(self.line), hasattr(self, "new")


def test_what_a_module_changes_in_place_is_put_back():
    network = Recurrent()
    monitor = PlasticityMonitor(network, (torch.randn(5, 3), torch.randn(5, 3)), loss=nn.functional.mse_loss)
    for _ in range(2):  # before the first forward pass, and after it
        before = copy.deepcopy(network.state())
        held = [network.written, network.last, network.past, network.past[0], network.names, network.line]
        monitor.measure()
        assert network.state() == before
        now = [network.written, network.last, network.past, network.past[0], network.names, network.line]
        assert all(one is other for one, other in zip(held, now, strict=True))
        output = network(torch.randn(5, 3))
    output.sum().backward()


def test_a_kept_graph_can_still_be_differentiated():
    network = Keeper("list")
    network(torch.randn(5, 6))
    PlasticityMonitor(network, (torch.randn(4, 6), torch.randn(4, 3)), loss=nn.functional.mse_loss).measure()
    network.kept[0].sum().backward()
    assert network.a.weight.grad.any()


def test_an_embedding_that_bounds_its_norms_is_left_as_it_is():
    network = nn.Sequential(nn.Embedding(5, 4, max_norm=0.1), nn.Linear(4, 3))
    before = network[0].weight.detach().clone()
    PlasticityMonitor(network, (torch.arange(5), torch.arange(5) % 3)).measure()
    assert torch.equal(network[0].weight, before)
