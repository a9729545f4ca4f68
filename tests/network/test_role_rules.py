"""Module types that are not torch's: what is known of them, what is left out, and how to tell of one's own."""

import copy
import logging

import pytest
import torch
from torch import nn

from supple import (
    L2InitRegularizer,
    L2Regularizer,
    NetworkReset,
    NormalizeAndProject,
    ParsevalRegularizer,
    Population,
    Role,
    SpectralNormRegularizer,
    SpectralRegularizer,
    WeightClipping,
    describe,
    roles,
)
from supple.network import role_rules
from supple.network.find_roles import find_roles
from support.resting import resting

BY_ROLE = [SpectralRegularizer, SpectralNormRegularizer, ParsevalRegularizer, NormalizeAndProject, WeightClipping]


def kinds(network, overrides=None):
    return {name: role.kind for name, role in find_roles(network, overrides).items()}


class Known:
    """Types as transformers, timm and others name them."""

    class LlamaRMSNorm(nn.Module):
        def __init__(self, n=6, start=1.0):
            super().__init__()
            self.weight = nn.Parameter(torch.full((n,), start))

        def forward(self, x):
            return self.weight * x * x.square().mean(-1, keepdim=True).add(1e-6).rsqrt()

    class GemmaRMSNorm(LlamaRMSNorm):
        def forward(self, x):
            return x * x.square().mean(-1, keepdim=True).add(1e-6).rsqrt() * (1.0 + self.weight.float())

    class NemotronLayerNorm1P(nn.LayerNorm):
        def forward(self, x):
            return nn.functional.layer_norm(x, self.normalized_shape, self.weight + 1.0, self.bias, self.eps)

    class GatedRMSNormGated(LlamaRMSNorm):
        def forward(self, x, gate=None):
            return super().forward(x if gate is None else x * torch.sigmoid(gate))

    class MixtralExperts(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_up_proj, self.down_proj = nn.Parameter(torch.randn(3, 8, 4)), nn.Parameter(torch.randn(3, 4, 8))
            self.gate_up_proj_bias = nn.Parameter(torch.randn(3, 8))

    class GptOssExperts(MixtralExperts):
        pass

    class ViTEmbeddings(nn.Module):
        def __init__(self):
            super().__init__()
            self.cls_token, self.position_embeddings = (nn.Parameter(torch.randn(1, n, 4)) for n in (1, 5))

    class MambaMixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.A_log, self.D = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.ones(6))
            self.dt_proj, self.in_proj = nn.Linear(2, 6), nn.Linear(4, 12)
            self.conv1d = nn.Conv1d(6, 6, 4, groups=6)

    class T5Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.relative_attention_bias = nn.Linear(4, 4), nn.Embedding(8, 2)

    class LayerScale(nn.Module):
        def __init__(self):
            super().__init__()
            self.gamma, self.logit_scale = nn.Parameter(1e-5 * torch.ones(4)), nn.Parameter(torch.tensor(2.66))

    class WindowAttention(nn.Module):
        def __init__(self):
            super().__init__()
            self.relative_position_bias_table = nn.Parameter(torch.randn(9, 2))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("LlamaRMSNorm", {"weight": "scale"}),
        ("GemmaRMSNorm", {"weight": "scale"}),
        ("NemotronLayerNorm1P", {"weight": "scale", "bias": "vector"}),
        ("GatedRMSNormGated", {"weight": "scale"}),
        ("MixtralExperts", {"gate_up_proj": "matrix", "down_proj": "matrix", "gate_up_proj_bias": "vector"}),
        ("GptOssExperts", {"gate_up_proj": "matrix", "down_proj": "matrix", "gate_up_proj_bias": "vector"}),
        ("ViTEmbeddings", {"cls_token": "matrix", "position_embeddings": "matrix"}),
        ("LayerScale", {"gamma": "unknown", "logit_scale": "unknown"}),
        ("WindowAttention", {"relative_position_bias_table": "unknown"}),
    ],
)
def test_what_is_known_by_the_types_name(name, expected):
    network = getattr(Known, name)() if name != "NemotronLayerNorm1P" else Known.NemotronLayerNorm1P(6)

    assert kinds(network) == expected
    assert find_roles(Population(lambda: copy.deepcopy(network), [0, 1])) == find_roles(network)
    assert kinds(nn.Sequential(network)) == {f"0.{parameter}": kind for parameter, kind in expected.items()}


@pytest.mark.parametrize(
    "name",
    ["relative_attention_bias", "global_relative_attention_bias", "rel_pos_bias", "rel_pos_x_bias", "rel_attn_embed"],
)
def test_what_is_added_to_attention_scores_is_no_map_in_any_class(name):
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.dense = nn.Linear(4, 4)
            setattr(self, name, nn.Embedding(8, 2))

    assert kinds(nn.Sequential(Encoder())) == {
        "0.dense.weight": "matrix",
        "0.dense.bias": "vector",
        f"0.{name}.weight": "other",
    }


def test_parts_of_mamba_and_t5_that_are_no_maps():
    found = kinds(Known.MambaMixer())
    assert {name for name, kind in found.items() if kind == "unknown"} == {"A_log", "D"}
    assert {name for name, kind in found.items() if kind == "other"} == {"dt_proj.weight", "dt_proj.bias"}
    assert kinds(nn.Sequential(Known.T5Attention()))["0.relative_attention_bias.weight"] == "other"
    assert kinds(Known.T5Attention())["q.weight"] == "matrix"
    assert kinds(nn.ModuleDict({"relative": nn.Embedding(3, 2)})) == {"relative.weight": "matrix"}


@pytest.mark.parametrize(
    ("norm", "offset"),
    [
        (lambda: Known.LlamaRMSNorm(6), 0.0),
        (lambda: Known.GemmaRMSNorm(6, 0.0), 1.0),
        (lambda: Known.GemmaRMSNorm(6, 3.0), 1.0),
        (lambda: Known.NemotronLayerNorm1P(6), 1.0),
        (lambda: Known.GatedRMSNormGated(6), 0.0),
        (lambda: nn.LayerNorm(6), 0.0),
        (lambda: nn.BatchNorm1d(6), 0.0),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_module_tells_whether_its_gain_is_one_more(norm, offset, dtype):
    network = norm().to(dtype)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    calls = []
    network.register_forward_hook(lambda *_: calls.append(1))
    assert find_roles(network)["weight"] == Role("scale", (6,), offset=offset)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert calls == []


def test_finding_roles_changes_nothing_in_a_network():
    """Also where a norm's own forward pass keeps statistics, draws random numbers and writes lists."""

    class Counting(nn.BatchNorm1d):
        def forward(self, x):
            self.seen.append(x)
            self.running_mean += x.mean(0)
            return super().forward(nn.functional.dropout(x, 0.5, training=True))

    network = nn.Sequential(nn.Linear(4, 6), Counting(6))
    network[1].seen = []
    before, random = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    for _ in range(3):
        describe(network)
        SpectralRegularizer(network, target="initial")
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert network[1].seen == []
    assert network[1].training


def test_a_norm_that_wants_a_gate():
    class NeedsGateRMSNormGated(Known.LlamaRMSNorm):
        def forward(self, x, gate):
            return super().forward(x) * torch.sigmoid(gate)

    assert kinds(NeedsGateRMSNormGated(4)) == {"weight": "scale"}


@pytest.mark.parametrize(
    ("kind", "layout"), [("matrix", (2, 12)), ("matrix", (2, 3, 5)), ("vector", (24,)), ("vector", (5, 5))]
)
def test_a_layout_that_does_not_fit_is_named(kind, layout):
    with pytest.raises(ValueError, match="expected a layout"):
        Role(kind, (4, 6), layout)


def test_a_norm_that_treats_its_weight_in_another_way_is_left_out():
    class OddRMSNorm(Known.LlamaRMSNorm):
        def forward(self, x):
            return x * self.weight.exp()

    class BrokenRMSNorm(Known.LlamaRMSNorm):
        def forward(self, x, y):
            raise RuntimeError

    assert kinds(OddRMSNorm(4)) == kinds(BrokenRMSNorm(4)) == {"weight": "unknown"}


def test_a_subclass_of_torchs_norm_that_cannot_be_tried_has_plain_gains():
    class ChannelsFirst(nn.LayerNorm):
        def forward(self, x):
            return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    assert find_roles(ChannelsFirst(4))["weight"] == Role("scale", (4,))


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("start", [-0.4, 0.0, 0.7])
def test_gains_of_one_plus_weight_go_to_a_gain_of_one(start, decoupled):
    network = Known.GemmaRMSNorm(6, start)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    method = SpectralRegularizer(network, 1.0, decoupled=decoupled).attach(optimizer)
    assert method.penalty().item() == pytest.approx(6 * ((1 + start) ** 2 - 1) ** 2, rel=1e-5)
    assert f"{abs(1 + start):.3f}" in describe(network)
    for _ in range(200):
        network.zero_grad()
        resting(network)
        optimizer.step()
    torch.testing.assert_close(network.weight.detach(), torch.zeros(6), rtol=0, atol=1e-3)


def test_the_ceiling_of_such_a_gain_is_of_the_gain():
    network = Known.GemmaRMSNorm(3)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([-0.5, 0.0, 0.5]))
    method = SpectralRegularizer(network, target="initial")
    torch.testing.assert_close(method.state["weight"]["target"], torch.tensor([1.0, 1.0, 1.5]))


def test_each_expert_is_a_matrix_and_has_a_bias_of_its_own():
    for make in (Known.MixtralExperts, Known.GptOssExperts):
        network = make()
        method = SpectralRegularizer(resting(network), 1.0, power_iterations=500)
        expected = {
            "gate_up_proj": torch.linalg.matrix_norm(network.gate_up_proj.detach(), 2),
            "down_proj": torch.linalg.matrix_norm(network.down_proj.detach(), 2),
        }
        found = method.spectral_norms()
        for name, sigma in expected.items():
            torch.testing.assert_close(found[name], sigma, rtol=1e-5, atol=0)
        total = sum(((sigma**2 - 1) ** 2).sum() for sigma in expected.values())
        total += (network.gate_up_proj_bias.detach().norm(dim=-1) ** 4).sum()
        torch.testing.assert_close(method.penalty().detach(), total, rtol=1e-4, atol=0)
        method.before_step()
        closed = [p.grad.clone() for p in network.parameters()]
        network.zero_grad()
        method.penalty().backward()
        for parameter, gradient in zip(network.parameters(), closed, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["GptOssExperts", "OpenAIPrivacyFilterExperts", "Llama4TextExperts", "AriaExperts"])
def test_experts_that_are_stored_with_their_inputs_first(name):
    network = type(name, (nn.Module,), {})()
    network.register_parameter("down_proj", nn.Parameter(torch.ones(2, 3, 5)))
    assert find_roles(network)["down_proj"].sizes == (2, 5, 3)


def test_what_is_inside_experts_is_what_it_is_elsewhere():
    inside = {"gate": nn.Linear(8, 4), "local": nn.Conv1d(8, 8, 3), "norm": nn.LayerNorm(8)}
    network = type("MixtureOfExperts", (nn.ModuleDict,), {})(inside)
    assert find_roles(network) == find_roles(nn.ModuleDict(inside))


@pytest.mark.parametrize(
    ("attention", "name"),
    [("CodeGenAttention", "qkv_proj"), ("GPTBigCodeAttention", "c_attn"), ("MiniMaxLightningAttention", "qkv_proj")],
)
def test_q_k_and_v_that_take_turns_by_head_are_one_matrix(attention, name):
    network = type(attention, (nn.ModuleDict,), {})({name: nn.Linear(4, 12)})
    assert find_roles(network)[f"{name}.weight"].sizes == (1, 12, 4)


def test_rotations_of_adapters_are_no_matrices():
    from peft import OFTConfig, get_peft_model

    network = get_peft_model(nn.Sequential(nn.Linear(8, 8)), OFTConfig(r=0, oft_block_size=4, target_modules=["0"]))
    assert {role.kind for name, role in find_roles(network).items() if "oft" in name} == {"other"}


@pytest.mark.parametrize("name", ["ViTEmbeddings", "VisionTransformer", "Encoder"])
@pytest.mark.parametrize("table", ["pos_embedding", "pos_embed", "position_embeddings", "time_embeddings"])
def test_where_vision_transformers_keep_their_positions(name, table):
    network = type(name, (nn.Module,), {})()
    network.register_parameter(table, nn.Parameter(torch.ones(1, 5, 4)))
    assert find_roles(network)[table].sizes == (1, 5, 4)


def test_how_experts_lie_counts_for_their_fan_in():
    clipped = {kind: WeightClipping(getattr(Known, kind)()).fan_in for kind in ("MixtralExperts", "GptOssExperts")}
    assert (clipped["MixtralExperts"]["gate_up_proj"], clipped["GptOssExperts"]["gate_up_proj"]) == (4, 8)


# What nobody told of.


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        for name, shape in {
            "weight": (3, 4),
            "kernel": (4, 4),
            "W": (2, 3),
            "mixing_weight": (5, 6),
            "out_proj": (6, 2),
            "table": (6, 4),
            "weights": (6, 4),
            "vector_weight": (4,),
            "gamma": (4,),
            "temperature": (),
            "cube_weight": (7, 3, 4),
        }.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))
        self.items = nn.ParameterList([torch.randn(3, 3)])
        self.named = nn.ParameterDict({"a_weight": torch.randn(3, 3)})


MATRICES = {"weight", "kernel", "W", "mixing_weight", "out_proj"}


def test_unknown_types_have_matrices_where_a_weight_has_two_dimensions():
    found = kinds(Own())
    assert {name for name, kind in found.items() if kind == "matrix"} == MATRICES
    assert {kind for name, kind in found.items() if name not in MATRICES} == {"unknown"}


@pytest.mark.parametrize("method", BY_ROLE)
def test_methods_that_go_by_role_leave_the_unknown_out_and_say_so_once(method, caplog):
    network = Own()
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    with caplog.at_level(logging.WARNING, logger="supple"):
        built = method(network)
    (record,) = caplog.records
    assert "'table': None" in record.message
    assert "'weight'" not in record.message
    optimizer = torch.optim.SGD(resting(network).parameters(), lr=0.1)
    built.attach(optimizer)
    optimizer.step()
    changed = {name for name, p in network.named_parameters() if not torch.equal(before[name], p)}
    assert changed <= MATRICES
    assert built.describe().count("left out") == len(before) - len(MATRICES)


def test_the_line_that_is_logged_can_be_copied(caplog):
    with caplog.at_level(logging.WARNING, logger="supple"):
        SpectralRegularizer(Own())
    line = caplog.records[0].message
    overrides = eval(line[line.index("{") : line.index("}") + 1])
    caplog.clear()
    SpectralRegularizer(Own(), roles=overrides)
    assert caplog.records == []


@pytest.mark.parametrize("method", [L2Regularizer, L2InitRegularizer])
def test_the_others_still_see_every_parameter(method, caplog):
    network = Own()
    assert set(method(network).parameters) == {name for name, _ in network.named_parameters()}
    assert caplog.records == []


def test_a_reset_still_draws_every_parameter():
    class Resettable(Known.LayerScale):
        def reset_parameters(self):
            nn.init.constant_(self.gamma, 1e-5)
            nn.init.constant_(self.logit_scale, 2.66)

    network = nn.Sequential(Resettable(), nn.Linear(2, 2))
    with torch.no_grad():
        network[0].gamma.fill_(7.0)
    optimizer = torch.optim.SGD(resting(network).parameters(), lr=0.1)
    NetworkReset(network, every=1).attach(optimizer)
    optimizer.step()
    assert network[0].gamma.max().item() == pytest.approx(1e-5)


# One's own types.


@pytest.fixture
def table(monkeypatch):
    monkeypatch.setattr(role_rules, "_TABLE", [*role_rules._TABLE])


@pytest.mark.parametrize("owner", [Own, "Own", "O*n"])
def test_a_type_of_ones_own_can_be_told_of(owner, table, caplog):
    def stack(shape):
        return Role("matrix", shape, layout=shape)

    roles.register(owner, {"table": "matrix", "gamma": "scale", "vector_*": "vector", "cube_weight": stack, "W": None})
    found = find_roles(Own())
    assert [found[name].kind for name in ("table", "gamma", "vector_weight", "W")] == [
        "matrix",
        "scale",
        "vector",
        "other",
    ]
    assert found["cube_weight"].sizes == (7, 3, 4)

    class Child(Own):
        pass

    assert find_roles(Child()) == found


def test_the_last_word_counts_and_comes_before_the_known_types(table):
    roles.register("*RMSNorm", {"weight": "vector"})
    roles.register(Known.LlamaRMSNorm, {"weight": "matrix"})
    assert kinds(Known.LlamaRMSNorm()) == {"weight": "matrix"}
    assert kinds(Known.GemmaRMSNorm()) == {"weight": "matrix"}, "a subclass"


def test_bad_rules_are_named(table):
    with pytest.raises(ValueError, match="for 'gamma', got 'gain'"):
        roles.register(Own, {"gamma": "gain"})
    with pytest.raises(ValueError, match="torch's Linear"):
        roles.register(nn.Linear, {"weight": "vector"})


# Stacked networks.


@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.Linear(3, 2),
        lambda: nn.Conv2d(2, 4, 3),
        lambda: nn.ConvTranspose1d(2, 4, 3),
        lambda: nn.LayerNorm(4),
        lambda: nn.BatchNorm1d(4),
        lambda: nn.Embedding(5, 3),
        lambda: nn.Bilinear(2, 3, 4),
        lambda: nn.LSTM(3, 2),
        lambda: nn.GRUCell(3, 2),
        lambda: nn.MultiheadAttention(4, 2),
        lambda: nn.PReLU(),
        lambda: nn.RMSNorm(4),
        lambda: nn.GroupNorm(2, 4),
    ],
)
@pytest.mark.parametrize("method", [SpectralRegularizer, L2Regularizer])
def test_networks_stacked_in_the_layers_of_one_are_refused(layer, method):
    models = [layer() for _ in range(3)]
    base = layer()
    method(base)
    stacked, _ = torch.func.stack_module_state(models)
    for name, tensor in stacked.items():
        owner, _, short = name.rpartition(".")
        setattr(base.get_submodule(owner), short, nn.Parameter(tensor))
    with pytest.raises(ValueError, match=r"stack_module_state.*build a supple.Population"):
        method(base)


def test_nor_are_they_taken_for_matrices_in_a_dictionary():
    models = [nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2)) for _ in range(4)]
    stacked, _ = torch.func.stack_module_state(models)
    held = nn.Module()
    held.stacked = nn.ParameterDict({name.replace(".", "_"): tensor for name, tensor in stacked.items()})
    for name, tensor in stacked.items():
        held.register_parameter(name.replace(".", "_") + "_weight", nn.Parameter(tensor))
    assert set(kinds(held).values()) == {"unknown"}


# Packed and frozen.


def test_what_a_quantized_network_has_frozen_is_left_alone():
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    network[0].weight = nn.Parameter(network[0].weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    method = SpectralRegularizer(network)
    assert "0.weight" not in method.parameters
    assert "left out" in next(line for line in method.describe().splitlines() if line.startswith("0.weight"))


def test_singular_values_are_exact_under_autocast():
    torch.manual_seed(0)
    network = nn.Linear(40, 30)
    exact = torch.linalg.svdvals(network.weight.detach().double())[0].item()
    with torch.autocast("cpu", torch.bfloat16):
        assert f"{exact:.3f}" in describe(network)
        assert find_roles(network)["weight"].spectral_norms(network.weight.detach()).item() == pytest.approx(
            exact, 1e-5
        )
