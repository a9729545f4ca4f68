"""Diagnostics of the weights, against numpy on matrices cut out of each parameter by hand."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

from oracles.regularizers import kind, matrices, owned
from supple import Population
from supple.diagnostics import DIAGNOSTICS, Inspection, inspection
from supple.nn import spectral_normalization
from support.probed_networks import NETWORKS, network_and_probe


def by_layer(network):
    """Each layer's matrices, by its name, cut out by hand; what parametrizations compute, as plain weights."""
    network = copy.deepcopy(network).eval()
    for module in [*network.modules()]:
        if is_parametrized(module):
            remove_parametrizations(module, "weight")
    return {
        full.removesuffix(".weight"): [m.detach().double().numpy() for m in matrices(module, name, parameter)]
        for full, module, name, parameter in owned(network)
        if kind(module, name, parameter) == "matrix"
    }


def entropy_rank(values):
    shares = values / values.sum()
    return math.exp(-sum(share * math.log(share) for share in shares if share > 0))


NAIVE = {
    "spectral_norm": lambda m: np.linalg.norm(m, 2),
    "smallest_singular_value": lambda m: np.linalg.norm(m, -2),
    "condition_number": lambda m: np.linalg.cond(m),
    "stable_rank": lambda m: (m**2).sum() / np.linalg.norm(m, 2) ** 2,
    "effective_rank": lambda m: entropy_rank(np.linalg.svd(m, compute_uv=False)),
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("diagnostic", NAIVE)
def test_every_matrix_against_numpy(network, diagnostic, device):
    network = network_and_probe(network)[0]
    found = DIAGNOSTICS[diagnostic](Inspection(copy.deepcopy(network).to(device)))
    expected = {name: [NAIVE[diagnostic](m) for m in matrices] for name, matrices in by_layer(network).items()}
    assert found.keys() == {"", *expected}
    for name, values in expected.items():
        assert found[name].item() == pytest.approx(np.mean(values), rel=1e-5), name
    assert found[""].item() == pytest.approx(np.mean([value for values in expected.values() for value in values]))


@pytest.mark.parametrize("network", NETWORKS)
def test_lipschitz_bound_is_the_product_of_the_largest(network, device):
    network = network_and_probe(network)[0]
    expected = math.prod(max(np.linalg.norm(m, 2) for m in matrices) for matrices in by_layer(network).values())
    found = DIAGNOSTICS["lipschitz_bound"](Inspection(network.to(device)))
    assert found.keys() == {""}
    assert found[""].item() == pytest.approx(expected)


def test_lipschitz_bound_holds_and_is_reached(device):
    network = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Linear(3, 3, bias=False)).to(device)
    x, y = torch.randn(2, 100, 3, device=device)
    bound = DIAGNOSTICS["lipschitz_bound"](Inspection(network))[""]
    assert ((network(x) - network(y)).norm(dim=-1) <= bound * (x - y).norm(dim=-1)).all()
    with torch.no_grad():
        for layer in (network[0], network[2]):
            layer.weight.copy_(torch.diag(torch.tensor([3.0, 2.0, 1.0])))
    assert DIAGNOSTICS["lipschitz_bound"](Inspection(network))[""].item() == pytest.approx(9)
    assert network(torch.tensor([1.0, 0, 0], device=device)).norm().item() == pytest.approx(9)


def test_a_grouped_convolution_is_as_large_as_its_largest_group(device):
    layer = nn.Conv1d(4, 4, 1, groups=2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0], [0, 1], [5, 0], [0, 2]]).unsqueeze(-1))
    inspection = Inspection(layer.to(device))
    assert DIAGNOSTICS["spectral_norm"](inspection)[""].item() == pytest.approx(3)  # of 1 and 5
    assert DIAGNOSTICS["lipschitz_bound"](inspection)[""].item() == pytest.approx(5)


@pytest.mark.parametrize("network", NETWORKS)
def test_norms_and_distances(network, device):
    network = network_and_probe(network)[0]
    initial = {name: vector.clone() for name, vector in Inspection(network).parameters.items()}
    before = {name: parameter.detach().clone().numpy() for name, parameter in network.named_parameters()}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))
    inspection = Inspection(copy.deepcopy(network).to(device), initial=initial)
    now = {name: parameter.detach().numpy() for name, parameter in network.named_parameters()}
    for diagnostic, expected in {
        "weight_norm": {name: np.linalg.norm(values) for name, values in now.items()},
        "distance_from_initialization": {name: np.linalg.norm(now[name] - before[name]) for name in now},
    }.items():
        found = DIAGNOSTICS[diagnostic](inspection)
        assert found.keys() == {"", *(name.removesuffix(".weight") for name in expected)}
        for name, value in expected.items():
            assert found[name.removesuffix(".weight")].item() == pytest.approx(value, rel=1e-5), name
        assert found[""].item() == pytest.approx(math.sqrt(sum(value**2 for value in expected.values())), rel=1e-5)


def test_an_untrained_network_is_where_it_started(device):
    network = network_and_probe("residual")[0].to(device)
    initial = Inspection(network).parameters
    assert not any(DIAGNOSTICS["distance_from_initialization"](Inspection(network, initial=initial)).values())


def test_a_role_may_leave_a_parameter_out_or_add_one(device):
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).to(device)
    found = DIAGNOSTICS["spectral_norm"](Inspection(network, roles={"0.weight": None, "1.bias": "matrix"}))
    assert found.keys() == {"", "1", "1.bias"}
    assert found["1.bias"].item() == pytest.approx(network[1].bias.norm().item())


def test_what_is_packed_into_integers_is_left_out(device):
    """As the frozen weights of a quantized network."""
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).to(device)
    for name, parameter in network[0].named_parameters():
        setattr(network[0], name, nn.Parameter(torch.ones_like(parameter, dtype=torch.int8), requires_grad=False))
    inspection = Inspection(network, initial=Inspection(network).parameters)
    assert DIAGNOSTICS["spectral_norm"](inspection).keys() == {"", "1"}
    assert inspection.parameters.keys() == {"1", "1.bias"}
    assert DIAGNOSTICS["distance_from_initialization"](inspection)[""] == 0


def test_a_network_without_matrices_says_what_is_missing():
    with pytest.raises(ValueError, match="singular_values for spectral_norm"):
        DIAGNOSTICS["spectral_norm"](Inspection(nn.LayerNorm(3)))


def test_a_population_has_one_value_a_member(device):
    population = Population(lambda: nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Linear(4, 3)), seeds=[0, 1, 2])
    population.to(device)
    for name, value in DIAGNOSTICS["spectral_norm"](Inspection(population)).items():
        alone = [DIAGNOSTICS["spectral_norm"](Inspection(population.member(index)))[name] for index in range(3)]
        torch.testing.assert_close(value, torch.stack(alone), rtol=1e-12, atol=0)


@pytest.mark.parametrize("parametrize", [nn.utils.parametrizations.weight_norm, spectral_normalization])
@pytest.mark.parametrize("members", [None, 2])
def test_of_a_parametrized_weight_it_is_what_the_layer_multiplies_by(parametrize, members, device):
    """However large the tensor is that it is computed from."""

    def make():
        return nn.Sequential(parametrize(nn.Linear(5, 4)), nn.ReLU(), nn.Linear(4, 2)).eval()

    network = Population(make, range(members)) if members else make()
    alone = [network.member(index) for index in range(members)] if members else [network]
    before = Inspection(network.to(device)).singular_values
    assert list(before) == ["0", "2"]
    for index, one in enumerate(alone):
        exact = torch.linalg.svdvals(one[0].weight.detach().double())
        torch.testing.assert_close(before["0"][index].squeeze() if members else before["0"].squeeze(), exact)
    raw = "0.parametrizations.weight.original" + "1" * (parametrize is nn.utils.parametrizations.weight_norm)
    with torch.no_grad():
        (network.stacked if members else network).get_parameter(raw).mul_(10)
    torch.testing.assert_close(Inspection(network).singular_values, before)


@pytest.mark.parametrize("old", [nn.utils.weight_norm, nn.utils.spectral_norm], ids=lambda old: old.__name__)
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("members", [0, 2])
def test_torchs_older_parametrizations_have_the_matrices_that_they_compute(old, members):
    def build():
        network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
        return old(network[0]) and network

    network = Population(build, seeds=range(members)) if members else build()
    found = Inspection(network).singular_values
    for index in range(members or 1):
        one = network.member(index) if members else network
        one.eval()(torch.randn(2, 4))  # computes the weight, without another power iteration
        values = found["0"][index] if members else found["0"]
        torch.testing.assert_close(values[0], torch.linalg.svdvals(one[0].weight.double()), rtol=1e-5, atol=1e-6)


def test_shards_are_refused(monkeypatch):
    monkeypatch.setattr(inspection, "is_sharded", lambda parameter: True)
    with pytest.raises(ValueError, match="expected whole parameters, got a shard of 'weight'"):
        Inspection(nn.Linear(2, 2))
