"""What role each parameter gets, and the matrices inside it."""

import copy
import re

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from oracles.regularizers import kind, matrices, owned, spectral_norms
from supple import Population, Role, SpectralRegularizer, describe
from supple.network.find_roles import find_roles
from supple.nn import spectral_normalization
from support.zoo import ZOO, Custom, PatchEmbeddings, Tied


@pytest.fixture(params=ZOO)
def network(request):
    return ZOO[request.param]()


def by_hand(module, name, parameter):
    """(groups, out, in), or (out, in) for one matrix alone."""
    cut = torch.stack(matrices(module, name, parameter.detach()))
    return cut.squeeze(0) if len(cut) == 1 else cut


def test_kinds_follow_the_paper(network):
    expected = {name: kind(module, short, parameter) for name, module, short, parameter in owned(network)}
    assert {name: role.kind for name, role in find_roles(network).items()} == expected


def test_matrices_are_those_cut_out_by_hand(network):
    for name, module, short, parameter in owned(network):
        role = find_roles(network)[name]
        if role.kind == "matrix":
            assert torch.equal(role.matrices(parameter), by_hand(module, short, parameter))


def test_the_outer_product_lands_where_the_matrices_are(network):
    for name, module, short, parameter in owned(network):
        role = find_roles(network)[name]
        if role.kind == "matrix":
            cut = by_hand(module, short, parameter)
            u, v = torch.randn(cut.shape[:-1]), torch.randn(cut.shape[:-2] + cut.shape[-1:])
            changed = parameter.detach().clone()  # keeps the strides, channels last among them
            assert changed.stride() == parameter.stride()
            role.add_outer_(changed, u, v)
            after = by_hand(module, short, changed)
            torch.testing.assert_close(after, cut + u.unsqueeze(-1) * v.unsqueeze(-2))


def test_every_norm_layer_of_torch_is_known():
    """Wherever torch defines a normalization with parameters, its weight is a scale: none is skipped."""
    arguments = {"GroupNorm": (1, 4), "CrossMapLRN2d": (4,), "LocalResponseNorm": (4,)}
    found = []
    for name in dir(nn):
        if "Norm" in name and not name.startswith("Lazy"):
            module = getattr(nn, name)(*arguments.get(name, (4,)))
            if "Instance" in name:
                module = getattr(nn, name)(4, affine=True)
            if list(module.parameters()):
                found.append(name)
                roles = {name: role.kind for name, role in find_roles(module).items()}
                assert roles.pop("weight") == "scale"
                assert set(roles.values()) <= {"vector"}
    assert len(found) >= 9


@pytest.mark.parametrize(
    ("name", "kind", "matrix"),
    [
        ("W", "matrix", (5, 4)),
        ("kernel", "matrix", (4, 4)),
        ("mixing_weight", "matrix", (2, 6)),
        ("out_proj", "matrix", (6, 2)),
        ("positions", "unknown", None),
        ("class_token", "unknown", None),
        ("mixing", "unknown", None),
        ("experts", "unknown", None),
        ("experts_weight", "unknown", None),
        ("listed.weight", "unknown", None),
        ("weight", "unknown", None),
        ("gamma", "unknown", None),
        ("gain", "unknown", None),
        ("scale", "unknown", None),
        ("shift", "unknown", None),
        ("weight_vector", "unknown", None),
        ("temperature", "unknown", None),
    ],
)
def test_fallback_for_types_that_torch_does_not_define(name, kind, matrix):
    network = Custom()
    role = find_roles(network)[name]
    assert role.kind == kind
    if matrix:
        assert role.matrices(getattr(network, name)).shape == matrix


@pytest.mark.parametrize(("name", "matrix"), [("position_embeddings", (5, 4)), ("class_token", (1, 4))])
def test_position_tables_and_class_tokens_of_embeddings(name, matrix):
    network = PatchEmbeddings()
    role = find_roles(network)[name]
    assert role.kind == "matrix"
    assert role.matrices(getattr(network, name)).shape == matrix


def test_a_name_counts_only_in_the_fallback():
    class Misleading(nn.Linear):
        """Still a Linear, whatever its parameters are called."""

    network = nn.Sequential()
    network.add_module("gamma", Misleading(3, 3))
    network.add_module("norm_bias", nn.LayerNorm(3))
    kinds = {name: role.kind for name, role in find_roles(network).items()}
    expected = {"gamma.weight": "matrix", "gamma.bias": "vector", "norm_bias.weight": "scale"}
    assert kinds == {**expected, "norm_bias.bias": "vector"}


def test_a_subclass_has_its_parents_role():
    class MyNorm(nn.LayerNorm):
        pass

    class MyConv(nn.Conv2d):
        pass

    assert find_roles(MyNorm(4))["weight"].kind == "scale"
    conv = MyConv(4, 4, 3, groups=2)
    assert find_roles(conv)["weight"].matrices(conv.weight).shape == (2, 2, 18)


class Scaled(nn.Linear):
    """With a learned scale of its outputs, and low-rank factors as some libraries add them."""

    def __init__(self):
        super().__init__(3, 4)
        self.scale, self.lora_A = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(2, 3))


class Standardized(nn.Conv2d):
    """With a gain of four dimensions, as in networks without norms (Brock et al., 2021)."""

    def __init__(self):
        super().__init__(3, 4, 3)
        self.gain = nn.Parameter(torch.ones(4, 1, 1, 1))


class Gated(nn.LSTM):
    def __init__(self):
        super().__init__(3, 4)
        self.weight_scale = nn.Parameter(torch.ones(4))


def test_what_a_subclass_adds_is_unknown():
    network = nn.ModuleDict({"linear": Scaled(), "conv": Standardized(), "lstm": Gated()})
    added = {"linear.scale", "linear.lora_A", "conv.gain", "lstm.weight_scale"}
    assert {name for name, role in find_roles(network).items() if role.kind == "unknown"} == added
    assert find_roles(network, {"conv.gain": "scale"})["conv.gain"].kind == "scale"


class Diagonal(nn.Module):
    def forward(self, diagonal):
        return diagonal.diag()

    def right_inverse(self, weight):
        return weight.diagonal().clone()


@pytest.mark.parametrize(
    ("parametrize", "kind"),
    [
        (lambda layer: nn.utils.parametrize.register_parametrization(layer, "weight", Diagonal()), "unknown"),
        (nn.utils.parametrizations.weight_norm, "unknown"),
        (nn.utils.parametrizations.orthogonal, "unknown"),
        (nn.utils.parametrizations.spectral_norm, "other"),
        (spectral_normalization, "other"),
    ],
)
@pytest.mark.parametrize("layer", [nn.Linear(3, 3), nn.Embedding(3, 3)], ids=str)
def test_what_a_weight_is_computed_from_is_not_the_weight(parametrize, kind, layer):
    roles = find_roles(parametrize(copy.deepcopy(layer)))
    assert {role.kind for name, role in roles.items() if name != "bias"} == {kind}


@pytest.mark.parametrize("layer", [nn.Linear(3, 3), nn.Embedding(3, 3)], ids=str)
def test_a_subclass_whose_weight_has_fewer_dimensions_is_unknown(layer):
    layer = copy.deepcopy(layer)
    layer.weight = nn.Parameter(torch.ones(3))
    assert find_roles(layer)["weight"].kind == "unknown"


def test_stacked_matrices_of_a_subclass_may_be_said():
    layer = nn.Linear(5, 4)
    layer.weight = nn.Parameter(torch.ones(3, 4, 5))
    with pytest.raises(ValueError, match=r"stack_module_state.*supple\.roles\.register"):
        find_roles(layer)
    said = Role("matrix", (3, 4, 5), (3, 4, 5))
    assert find_roles(layer, {"weight": said})["weight"] == said


@pytest.mark.parametrize("name", ["qkv", "qkv_proj", "to_qkv", "Wqkv", "c_attn"])
def test_q_k_and_v_in_one_linear_layer_are_three_matrices(name):
    network = nn.ModuleDict({name: nn.Linear(4, 12), "other": nn.Linear(4, 12)})
    weight = network[name].weight
    role = find_roles(network)[f"{name}.weight"]
    assert torch.equal(role.matrices(weight), torch.stack(weight.chunk(3)))
    assert find_roles(network)["other.weight"].sizes[0] == 1
    for wrapped in (torch.compile(network[name], backend="eager"), checkpoint_wrapper(network[name])):
        (inside,) = (role for path, role in find_roles(nn.ModuleDict({name: wrapped})).items() if "weight" in path)
        assert inside == role
        assert set(find_roles(wrapped).values()) == set(find_roles(nn.Linear(4, 12)).values())
    grouped = nn.ModuleDict({name: nn.Linear(4, 8)})  # fewer heads for k and v than for q: which rows are whose?
    assert find_roles(grouped)[f"{name}.weight"].sizes[0] == 1


def test_roles_of_a_population_are_those_of_a_member(network):
    lone = find_roles(network)
    population = Population(lambda: network, seeds=[0, 1, 2])
    roles = find_roles(population)
    assert roles == lone
    for name, parameter in population.stacked.named_parameters():
        if roles[name].kind == "matrix":
            stacked = roles[name].matrices(parameter)
            each = [roles[name].matrices(member) for member in parameter.unbind()]
            assert torch.equal(stacked, torch.stack(each))


@pytest.mark.parametrize("wrap", [lambda whole: torch.compile(whole, backend="eager"), nn.Sequential])
def test_a_population_inside_something_else_is_refused(wrap):
    """Its stacks would be taken for the tensors of one network, (members, out, in) for a convolution's."""
    population = Population(lambda: nn.Linear(3, 2), seeds=[0, 1])
    with pytest.raises(ValueError, match="got one inside"):
        SpectralRegularizer(wrap(population))


@pytest.mark.parametrize("layer", [nn.Conv2d(2, 4, 3), nn.LayerNorm(4), nn.MultiheadAttention(4, 2)], ids=str)
def test_to_find_roles_is_not_to_compute_parametrized_weights(layer):
    class Counting(nn.Module):
        calls = 0

        def forward(self, weight):
            Counting.calls += 1
            return weight * 2

    name = "in_proj_weight" if isinstance(layer, nn.MultiheadAttention) else "weight"
    nn.utils.parametrize.register_parametrization(layer, name, Counting())
    before = Counting.calls
    roles = find_roles(layer)
    assert Counting.calls == before
    assert set(roles) == {parameter for parameter, _ in layer.named_parameters()}
    assert find_roles(Population(lambda: layer, seeds=[0, 1])) == roles
    assert Counting.calls == before


def test_tied_parameters_count_once():
    assert list(find_roles(Tied())) == ["embedding.weight", "head.bias"]


def test_a_module_used_twice_counts_once():
    shared = nn.Linear(3, 3)
    assert list(find_roles(nn.Sequential(shared, shared))) == ["0.weight", "0.bias"]


LAYERS = {
    "linear": (lambda: nn.Linear(4, 3), "weight"),
    "conv": (lambda: nn.Conv2d(4, 6, 3, groups=2), "weight"),
    "conv-transpose": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), "weight"),
    "lstm": (lambda: nn.LSTM(4, 3), "weight_hh_l0"),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("compute", [nn.utils.weight_norm, nn.utils.spectral_norm])
@pytest.mark.filterwarnings("ignore:.*_norm.*is deprecated")
def test_what_older_functions_compute_a_weight_from(layer, compute):
    make, name = LAYERS[layer]
    roles, others = find_roles(compute(make(), name)), find_roles(make())
    expected = {"g": "unknown", "v": "unknown"} if compute is nn.utils.weight_norm else {"orig": "other"}
    assert {suffix: roles.pop(f"{name}_{suffix}").kind for suffix in expected} == expected
    assert others.pop(name).kind == "matrix"
    assert roles == others


def test_matrices_of_ones_own_are_no_gains():
    network = nn.Module()
    network.weight_g, network.weight_v = nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(3, 4))
    roles = find_roles(network)
    assert {name: role.kind for name, role in roles.items()} == {"weight_g": "unknown", "weight_v": "unknown"}


@pytest.mark.parametrize("chosen", ["matrix", "vector", "scale"])
@pytest.mark.parametrize("name", ["positions", "mixing", "shift", "scale"])
def test_roles_can_be_overridden(name, chosen):
    roles = find_roles(Custom(), {name: chosen})
    assert roles[name].kind == chosen
    del roles[name]
    assert roles == {other: role for other, role in find_roles(Custom()).items() if other != name}


def test_overridden_to_none_is_left_out():
    assert list(find_roles(nn.Linear(2, 2), {"bias": None})) == ["weight"]


def test_a_whole_role_can_be_given():
    network = nn.Linear(4, 6)
    stacked = Role("matrix", (6, 4), layout=(3, 2, 4))
    assert find_roles(network, {"weight": stacked})["weight"].matrices(network.weight).shape == (3, 2, 4)
    with pytest.raises(ValueError, match=r"weight.*\(4, 6\)"):
        find_roles(network, {"weight": Role("matrix", (4, 6), layout=(1, 4, 6))})


@pytest.mark.parametrize("members", [(), (3,)])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_role_that_joins_dimensions_writes_through_to_any_memory_layout(transposed, members):
    """As where heads x width are the rows of one matrix."""
    role = Role("matrix", (2, 6, 5), layout=(1, 12, 5), transposed=transposed)
    tensor = torch.zeros(*members, 6, 2, 5).transpose(-3, -2)
    u, v = (torch.randn(*members, n) for n in role.sizes[1:])
    role.add_outer_(tensor, u, v)
    outer = u.unsqueeze(-1) * v.unsqueeze(-2)
    torch.testing.assert_close(role.matrices(tensor), outer)
    role.multiply_(tensor, torch.full(members, 3.0))
    torch.testing.assert_close(role.matrices(tensor), 3 * outer)


def test_an_unknown_override_suggests_the_nearest_name():
    network = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    with pytest.raises(ValueError, match=r"1\.wieght.*did you mean '1\.weight'"):
        find_roles(network, {"1.wieght": "scale"})


def test_an_unknown_kind_says_which_there_are():
    with pytest.raises(ValueError, match=r"matrix, vector, scale.*'weight'.*'matrx'"):
        find_roles(nn.Linear(2, 2), {"weight": "matrx"})


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3)), r"1\.weight.*run one batch first"),
        (lambda: nn.Linear(2, 2, dtype=torch.complex64), r"weight.*complex64.*roles="),
    ],
    ids=["lazy", "complex"],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_parameters_that_have_no_role_are_named(network, message):
    for build in (find_roles, SpectralRegularizer):
        with pytest.raises(ValueError, match=message):
            build(network())


def test_a_lazy_module_works_once_it_has_seen_a_batch():
    network = nn.LazyLinear(3)
    network(torch.zeros(1, 4))
    assert find_roles(network)["weight"].shape == (3, 4)


def test_complex_parameters_can_be_left_out():
    network = nn.Linear(2, 2, dtype=torch.complex64)
    assert find_roles(network, {"weight": None, "bias": None}) == {}


def rows(table):
    header, *lines = (re.split(r"\s{2,}", line.strip()) for line in table.splitlines())
    return {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in lines}


def test_describe_has_a_row_for_each_parameter(network):
    table = rows(describe(network))
    assert list(table) == [name for name, *_ in owned(network)]
    for name, module, short, parameter in owned(network):
        row = table[name]
        assert row["shape"] == ("x".join(map(str, parameter.shape)) or "scalar")
        role = kind(module, short, parameter)
        assert row["role"] == ("left out" if role == "unknown" else role)
        if row["role"] == "matrix":
            norms = spectral_norms(module, short, parameter)
            assert row["matrices"] == str(len(norms))
            assert float(row["sigma_1"]) == pytest.approx(max(norms), abs=6e-4)
        elif row["role"] == "left out":
            assert row["matrices"] == row["sigma_1"] == "-"
        else:
            assert row["matrices"] == "-"
            order = 2 if row["role"] == "vector" else float("inf")
            assert float(row["sigma_1"]) == pytest.approx(
                torch.linalg.vector_norm(parameter.double(), ord=order).item(), abs=6e-4
            )


def test_describe_shows_overrides_and_what_is_left_out():
    overrides = {"0.weight": None, "0.bias": "scale"}
    network = nn.Sequential(nn.Linear(2, 2))
    table = rows(describe(network, overrides))
    assert table["0.weight"]["role"] == "left out"
    assert table["0.bias"]["role"] == "scale"
    of_method = rows(SpectralRegularizer(network, roles=overrides).describe())
    assert {name: row.pop("target") for name, row in of_method.items()} == {"0.weight": "-", "0.bias": "1.000"}
    assert of_method == table


def test_describe_leaves_out_what_is_packed_into_integers():
    network = nn.Linear(2, 2)
    network.bias = nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False)
    assert {name: row["role"] for name, row in rows(describe(network)).items()} == {
        "weight": "matrix",
        "bias": "left out",
    }


def test_describe_looks_only():
    network = Custom()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    describe(network)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
