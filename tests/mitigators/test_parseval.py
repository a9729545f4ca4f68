"""Parseval regularization against min(1, 64/n)² ‖W Wᵀ − s I‖², differentiated in float64, for every layout."""

import pytest
import torch
from torch import nn

from oracles.regularizers import kind, matrices, owned, parameters64
from oracles.training import assert_follows, descended
from supple import ParsevalRegularizer, Population
from support.resting import resting
from support.zoo import ZOO, Custom, relative_error

LAYERS = {
    "tall": lambda: nn.Linear(3, 7),
    "wide": lambda: nn.Linear(7, 3),
    "square": lambda: nn.Linear(5, 5),
    "row": lambda: nn.Linear(5, 1),
    "conv": lambda: nn.Conv2d(3, 5, 3),
    "conv-tall": lambda: nn.Conv1d(2, 9, 2),
    "conv-channels-last": lambda: nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last),
    "conv-grouped": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "conv-grouped-tall": lambda: nn.Conv1d(4, 8, 1, groups=4),
    "conv-transpose": lambda: nn.ConvTranspose2d(3, 5, (2, 3)),
    "conv-transpose-tall": lambda: nn.ConvTranspose1d(2, 9, 2),
    "conv-transpose-grouped": lambda: nn.ConvTranspose2d(4, 6, 3, groups=2),
    "conv-transpose-channels-last": lambda: nn.ConvTranspose2d(3, 5, 3).to(memory_format=torch.channels_last),
    "attention": lambda: nn.MultiheadAttention(6, 2),
    "attention-kdim-vdim": lambda: nn.MultiheadAttention(6, 2, kdim=5, vdim=3),
    "lstm": lambda: nn.LSTM(4, 5),
    "custom": Custom,
}


def oracle(network, parameters, scale=2.0, skip=()):
    """Σ over matrices of min(1, 64/n)² ‖W Wᵀ − s I‖²_F: with W Wᵀ also where Wᵀ W is smaller."""
    total = torch.zeros((), dtype=torch.float64)
    for full_name, module, name, original in owned(network):
        if kind(module, name, original) == "matrix" and full_name not in skip:
            for matrix in matrices(module, name, parameters[full_name]):
                width_factor = min(1.0, 64 / len(matrix)) ** 2
                total = total + width_factor * ((matrix @ matrix.T - scale * torch.eye(len(matrix))) ** 2).sum()
    return total


@pytest.mark.parametrize("scale", [1.0, 2.5])
@pytest.mark.parametrize("name", LAYERS)
def test_gradient_and_penalty_are_the_oracles(name, scale):
    network = LAYERS[name]()
    weights = {name for name, module, short, p in owned(network) if kind(module, short, p) == "matrix"}
    regularizer = ParsevalRegularizer(network, strength=0.001, scale=scale, roles=dict.fromkeys(weights, "matrix"))
    parameters = {name: value.requires_grad_() for name, value in parameters64(network).items()}
    expected = 0.001 * oracle(network, parameters, scale)
    expected.backward()
    torch.testing.assert_close(regularizer.penalty().double(), expected.detach(), rtol=1e-5, atol=0)
    resting(network)
    regularizer.before_step()
    for name, parameter in network.named_parameters():
        if name in weights:
            assert relative_error(parameter.grad, parameters[name].grad) <= 1e-5, name
        else:
            assert not parameter.grad.any(), name


def test_twenty_steps_are_the_oracles(small_network):
    network = small_network()
    method = ParsevalRegularizer(network, strength=1e-4)
    penalty = descended(lambda parameters: oracle(network, parameters, skip=("8.weight",)), 1e-4)
    assert_follows(network, method, penalty)


@pytest.mark.parametrize("shape", [(6, 3), (3, 6), (5, 5)], ids=str)
@pytest.mark.parametrize(("scale", "decoupled"), [(1.0, False), (2.0, True)])
def test_every_singular_value_goes_to_the_root_of_the_scale(shape, scale, decoupled):
    network = nn.Linear(*shape, bias=False)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    options = {"strength": 0.5, "roles": {"weight": "matrix"}}
    ParsevalRegularizer(network, scale=scale, decoupled=decoupled, **options).attach(optimizer)
    for _ in range(400):
        optimizer.zero_grad()
        resting(network)
        optimizer.step()
    values = torch.linalg.svdvals(network.weight.detach())
    torch.testing.assert_close(values, torch.full_like(values, scale**0.5), rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", LAYERS)
def test_the_decoupled_step_subtracts_step_size_times_the_gradient(name):
    network = LAYERS[name]()
    weights = {name for name, module, short, p in owned(network) if kind(module, short, p) == "matrix"}
    before = {name: value.requires_grad_() for name, value in parameters64(network).items()}
    oracle(network, before).backward()
    optimizer = torch.optim.SGD([{"params": [p], "lr": 0.01 * (k + 1)} for k, p in enumerate(network.parameters())])
    roles = dict.fromkeys(weights, "matrix")
    ParsevalRegularizer(network, strength=1e-4, decoupled=True, roles=roles).attach(optimizer)
    resting(network)
    optimizer.step()
    for k, (name, parameter) in enumerate(network.named_parameters()):
        change = 0.01 * (k + 1) * 1e-4 * before[name].grad if name in weights else 0.0
        torch.testing.assert_close(parameter.detach().double(), before[name].detach() - change, rtol=1e-6, atol=1e-7)


def test_each_form_has_its_own_strength():
    found = [ParsevalRegularizer(ZOO["mlp"](), decoupled=decoupled).strength for decoupled in (False, True)]
    assert found == [1e-3, 1.0]


def test_the_output_layer_is_free_unless_named():
    network = resting(ZOO["mlp"]())
    ParsevalRegularizer(network).before_step()
    assert [name for name, p in network.named_parameters() if p.grad.any()] == ["0.weight"]
    ParsevalRegularizer(network, roles={"3.weight": "matrix"}).before_step()
    assert network[3].weight.grad.any()


def test_a_tied_output_layer_is_free():
    network = nn.ModuleDict({"embed": nn.Embedding(5, 4), "hidden": nn.Linear(4, 4), "head": nn.Linear(4, 5)})
    assert set(ParsevalRegularizer(network).parameters) == {"embed.weight", "hidden.weight"}
    network["head"].weight = network["embed"].weight
    assert set(ParsevalRegularizer(network).parameters) == {"hidden.weight"}


def test_members_with_several_matrices_each_have_their_own_penalty():
    population = Population(lambda: nn.Sequential(LAYERS["conv-grouped-tall"](), nn.Conv1d(8, 2, 1)), [0, 1])
    members = [population.member(index) for index in range(2)]
    expected = [oracle(member, parameters64(member), skip=("1.weight",)) for member in members]
    penalty = ParsevalRegularizer(population, strength=1.0).penalty()
    torch.testing.assert_close(penalty.detach().double(), torch.stack(expected), rtol=1e-5, atol=0)


@pytest.mark.parametrize("network", [nn.Linear(3, 2), nn.LayerNorm(3)], ids=["output-alone", "none"])
def test_a_network_without_a_hidden_matrix_is_refused(network):
    with pytest.raises(ValueError, match="expected a hidden weight matrix"):
        ParsevalRegularizer(network)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_a_bad_scale_is_refused(scale):
    with pytest.raises(ValueError, match=rf"expected a scale.*{scale}"):
        ParsevalRegularizer(ZOO["mlp"](), scale=scale)


def test_an_output_layer_that_roles_leave_out_takes_no_hidden_one_with_it():
    network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1))
    usual, named = (ParsevalRegularizer(network, roles=roles) for roles in (None, {"4.weight": None}))
    assert list(usual.parameters) == list(named.parameters) == ["0.weight", "2.weight"]


@pytest.mark.parametrize("strength", [1.0, 1e6])
@pytest.mark.parametrize(("layer", "lr"), [("depthwise", 1e-3), ("narrow", 1e-3), ("narrow", 1.0), ("wide", 0.1)])
def test_the_decoupled_form_crosses_the_root_of_the_scale_at_no_strength(layer, lr, strength):
    layers = {
        "depthwise": lambda: nn.Conv2d(8, 8, 3, groups=8, bias=False),
        "narrow": lambda: nn.Linear(64, 4, bias=False),
        "wide": lambda: nn.Linear(5, 100, bias=False),
    }
    network = layers[layer]()
    with torch.no_grad():
        network.weight.mul_(10)
    optimizer = torch.optim.SGD(network.parameters(), lr=lr)
    ParsevalRegularizer(network, strength, decoupled=True, roles={"weight": "matrix"}).attach(optimizer)
    root = 2**0.5
    before = torch.linalg.svdvals(network.weight.detach().flatten(1 if layer != "depthwise" else 2))
    for _ in range(50):
        resting(network)
        optimizer.step()
        now = torch.linalg.svdvals(network.weight.detach().flatten(1 if layer != "depthwise" else 2))
        assert ((now - root) * (before - root) >= -1e-5).all()
        assert ((now - root).abs() <= (before - root).abs() + 1e-5).all()
        before = now


def test_a_narrow_layer_is_not_pulled_more_strongly_than_one_of_64_units():
    network = nn.Conv2d(4, 4, 1, groups=4, bias=False)  # four matrices of one row: (64 / 1)² would be 4096
    nn.init.constant_(network.weight, 3.0)
    roles = {"weight": "matrix"}
    assert ParsevalRegularizer(network, 1.0, roles=roles).penalty().item() == pytest.approx(4 * (9 - 2) ** 2)


def test_a_layer_of_256_units_is_pulled_a_sixteenth_as_strongly():
    network = nn.Linear(3, 256, bias=False)
    nn.init.zeros_(network.weight)
    method = ParsevalRegularizer(network, 1.0, roles={"weight": "matrix"})
    assert method.penalty().item() == pytest.approx(256 * 2**2 / 16)
    nn.init.constant_(network.weight, 1.0)
    network.weight.grad = torch.zeros_like(network.weight)
    method.before_step()  # 4 a² (W Wᵀ − 2 I) W, where each entry of W Wᵀ W is 3 · 256
    torch.testing.assert_close(network.weight.grad, torch.full((256, 3), 4 / 16 * (3 * 256 - 2.0)))
