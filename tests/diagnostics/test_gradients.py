"""The gradients of single examples, against torch.func and numpy."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy, mse_loss
from torch.nn.utils import prune

from supple import Population
from supple.diagnostics import DIAGNOSTICS, Inspection, per_example
from supple.diagnostics.per_example import gradient_grams
from support.probed_networks import NETWORKS, network_and_probe, perceptron


def naive_gradients(network, x, y, loss=cross_entropy):
    """The gradient of each example by each trainable parameter, one example after the other, in evaluation mode.

    On the CPU, wherever the network is.
    """
    network = copy.deepcopy(network).cpu().eval()
    trained = {name: p.detach() for name, p in network.named_parameters() if p.requires_grad}

    def of_one(parameters, inputs, label):
        return loss(functional_call(network, parameters, (inputs[None],)), label[None])

    each = [grad(of_one)(trained, inputs, label) for inputs, label in zip(x, y, strict=True)]
    return {name: torch.stack([gradient[name].flatten() for gradient in each]) for name in trained}


def grams(network, x, y, device, loss=cross_entropy):
    """The inner products by a network that is moved to the device, for a comparison on the CPU."""
    found = Inspection(network.to(device), x, y)._by_member(lambda member: gradient_grams(member, loss))
    return {name: gram.cpu() for name, gram in found.items()}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_inner_products_are_those_of_the_gradients_on_the_cpu(name, dtype, device):
    network, x, y = network_and_probe(name)
    network, x = network.to(dtype), x.to(dtype) if x.is_floating_point() else x
    expected = naive_gradients(network, x, y)
    found = grams(network, x.to(device), y.to(device), device)
    assert list(found) == list(expected)
    for parameter, gradients in expected.items():
        gram = gradients.double() @ gradients.double().T
        scale = gram.diagonal().max().item()
        rtol = 1e-11 if dtype == torch.float64 else 1e-4
        torch.testing.assert_close(
            found[parameter], gram, rtol=rtol, atol=rtol * scale, msg=lambda m, n=parameter: n + m
        )
        assert (scale > 0) == (not parameter.startswith("unused")), f"{parameter} is tested"


def test_the_oracle_is_what_vmap_says_too():
    network, x, y = network_and_probe("residual")
    network.eval()
    parameters = {name: p.detach() for name, p in network.named_parameters()}

    def loss(parameters, x, y):
        return cross_entropy(functional_call(network, parameters, (x[None],)), y[None])

    stacked = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, x, y)
    for name, gradients in naive_gradients(network, x, y).items():
        torch.testing.assert_close(stacked[name].flatten(1), gradients, rtol=1e-3, atol=1e-5)


@settings(max_examples=25)
@given(
    st.sampled_from([1, 2, 3]),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(0, 2),
    st.integers(1, 2),
    st.booleans(),
)
def test_convolutions_of_all_kinds(device, groups, inputs, outputs, kernel, stride, padding, dilation, line):
    layer = (nn.Conv1d if line else nn.Conv2d)(
        groups * inputs, groups * outputs, kernel, stride, padding, dilation, groups
    ).double()
    x = torch.randn(4, groups * inputs, *([7] if line else [7, 6])).double()
    y = torch.randn_like(layer(x))
    for parameter, gram in grams(layer, x, y, device, mse_loss).items():
        gradients = naive_gradients(layer, x, y, mse_loss)[parameter]
        torch.testing.assert_close(gram, gradients @ gradients.T)


@pytest.mark.parametrize("sizes", [(7, 1, 5, 6), (7, 2, 20, 30), (7, 9, 3, 2), (1, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("held", [1, 50, 2**24])
def test_both_ways_and_in_pieces(monkeypatch, sizes, held, device):
    """Few positions: through inner products. Many: through the gradients. However many numbers fit into memory."""
    monkeypatch.setattr(per_example, "HELD", held)
    examples, positions, n, o = sizes
    a, b = torch.randn(examples, positions, n), torch.randn(examples, positions, o)
    gradients = torch.einsum("epo,epn->eon", b.double(), a.double()).flatten(1)
    found = per_example._product_gram(a.to(device), b.to(device)).cpu()
    torch.testing.assert_close(found, gradients @ gradients.T, rtol=1e-5, atol=1e-4)


def test_other_parameters_in_pieces(monkeypatch, device):
    network, x, y = network_and_probe("transformer")
    whole = grams(network, x, y, device)
    monkeypatch.setattr(per_example, "HELD", 20)  # 35 numbers of each example
    for name, gram in grams(network, x, y, device).items():
        torch.testing.assert_close(gram, whole[name])


def test_inputs_that_are_not_of_single_examples_are_taken_one_by_one(device):
    class Mixed(nn.Module):
        """Its layer sees pairs of neighbouring numbers of all examples, one row more than there are pairs."""

        def __init__(self):
            super().__init__()
            self.inner, self.head = nn.Linear(2, 2), nn.Linear(4, 3)

        def forward(self, x):
            rows = torch.cat([x.reshape(-1, 2), x.new_zeros(1, 2)])
            return self.head(torch.tanh(self.inner(rows))[:-1].reshape(-1, 4))

    network, x, y = Mixed(), torch.randn(5, 4), torch.randint(3, (5,))
    gradients = naive_gradients(network, x, y)
    for name, gram in grams(network, x, y, device).items():
        torch.testing.assert_close(gram, (gradients[name] @ gradients[name].T).double(), rtol=1e-4, atol=1e-6)


def assert_as_by_autograd(network, x, y, device, loss=cross_entropy):
    """The inner products on the device, against one plain backward pass an example on the CPU."""
    network.double().eval()
    parameters = dict(network.named_parameters())
    rows = []
    for index in range(len(y)):
        value = loss(network(x[index : index + 1]), y[index : index + 1])
        gradients = [torch.zeros_like(p) for p in parameters.values()]
        if value.requires_grad:
            gradients = torch.autograd.grad(value, list(parameters.values()), materialize_grads=True)
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    sizes = [p.numel() for p in parameters.values()]
    found = grams(network, x, y, device, loss)
    assert list(found) == list(parameters)
    for name, gradients in zip(parameters, torch.stack(rows).split(sizes, 1), strict=True):
        torch.testing.assert_close(found[name], gradients @ gradients.T, msg=lambda message, n=name: f"{n}: {message}")


class TimeFirst(nn.Module):
    """``(batch, time, 4)``, but the layers have the time first, in a dimension of its own or in that of the batch."""

    def __init__(self, flat=False):
        super().__init__()
        self.flat = flat
        self.inner, self.norm, self.head = nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3)

    def forward(self, x):
        x = x.transpose(0, 1)
        h = self.norm(torch.tanh(self.inner(x.flatten(0, 1) if self.flat else x)))
        return self.head(h.reshape(*x.shape[:2], 5).mean(0))


class BothSigns(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.norm, self.head = nn.Conv1d(4, 5, 1), nn.BatchNorm1d(5), nn.Linear(5, 3)

    def forward(self, x):
        one, other = torch.tanh(self.norm(self.inner(torch.cat([x.mT, -x.mT])))).chunk(2)
        return self.head((one * other.exp()).mean(-1))


class EncoderTimeFirst(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.1)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.encoder(x.transpose(0, 1)).mean(0))


ROWS_OF_SEVERAL = {
    "time first": TimeFirst,
    "time and batch": lambda: TimeFirst(flat=True),
    "both signs": BothSigns,
    "encoder": EncoderTimeFirst,
}


@pytest.mark.parametrize("name", ROWS_OF_SEVERAL)
@pytest.mark.parametrize(("examples", "time"), [(1, 6), (2, 2), (2, 6), (3, 6), (6, 6), (6, 3), (5, 5)])
def test_as_many_rows_that_are_of_several_examples(name, examples, time, device):
    x, y = torch.randn(examples, time, 4).double(), torch.randint(3, (examples,))
    assert_as_by_autograd(ROWS_OF_SEVERAL[name](), x, y, device)


class UsedBesides(nn.Module):
    """Some of its layers are called, and their parameters are used without them too."""

    def __init__(self):
        super().__init__()
        self.inner, self.norm, self.conv, self.head = (
            nn.Linear(4, 4),
            nn.LayerNorm(4),
            nn.Conv1d(1, 2, 3),
            nn.Linear(4, 3),
        )

    def forward(self, x):
        h = self.norm(torch.tanh(self.inner(x))) + nn.functional.linear(x, self.inner.weight.T)
        return self.head(h + self.conv(x[:, None]).mean((1, 2))[:, None] + self.norm.weight.square())


@pytest.mark.parametrize("examples", [1, 2, 5])
def test_parameters_that_are_used_besides_their_layer(examples, device):
    x, y = torch.randn(examples, 4).double(), torch.randint(3, (examples,))
    assert_as_by_autograd(UsedBesides(), x, y, device)


class UsedByOne(nn.Module):
    """A batch of five, of which the fourth alone goes another way."""

    def __init__(self, use):
        super().__init__()
        self.use = use
        self.inner, self.norm, self.conv, self.head = (
            nn.Linear(4, 4),
            nn.LayerNorm(4),
            nn.Conv1d(1, 2, 3),
            nn.Linear(4, 3),
        )

    def forward(self, x):
        h = self.norm(torch.tanh(self.inner(x))) + self.conv(x[:, None]).mean((1, 2))[:, None]
        return self.head(torch.where(x[:, :1] > 9, self.use(self, x, h), h))


USES = {
    "F.linear": lambda net, x, h: h + nn.functional.linear(x, net.inner.weight),
    "F.linear, of the same length": lambda net, x, h: h - 2 * nn.functional.linear(x, net.inner.weight, net.inner.bias),
    "F.conv1d": lambda net, x, h: h * nn.functional.conv1d(x[:, None], net.conv.weight).mean((1, 2))[:, None],
    "a gain": lambda net, x, h: h * net.norm.weight,
    "a bias": lambda net, x, h: h + net.inner.bias,
}


@pytest.mark.parametrize("use", USES)
def test_parameters_that_one_example_uses_besides_their_layer(use, device):
    x, y = torch.randn(5, 4).double(), torch.randint(3, (5,))
    x[3, 0] = 10
    assert_as_by_autograd(UsedByOne(USES[use]), x, y, device)


def test_rows_of_which_a_few_are_in_another_order(device):
    class Swapped(nn.Sequential):
        def forward(self, x):
            there = torch.tensor([0, 3, 2, 1, 4])[: len(x)] if len(x) > 1 else torch.tensor([0])
            return self[1](torch.tanh(self[0](x[there]))[there])

    x, y = torch.randn(5, 4).double(), torch.randint(3, (5,))
    assert_as_by_autograd(Swapped(nn.Linear(4, 5), nn.Linear(5, 3)), x, y, device)


def with_hook(network):
    network[0].register_forward_hook(lambda layer, inputs, output: output * (1 + (inputs[0][:, :1] > 9)))
    return network


def mapped(network):
    network.forward = torch.func.vmap(lambda x: nn.Sequential.forward(network, x))
    return network


def scaled(network):
    scale = nn.Module()
    scale.register_parameter("scale", nn.Parameter(torch.tensor(2.0)))
    scale.forward = lambda x: scale.scale * x
    return network.append(scale)


CHANGES = {
    "a hook": with_hook,
    "pruned weight": lambda network: (prune.l1_unstructured(network[0], "weight", 0.5), network)[1],
    "pruned bias": lambda network: (prune.l1_unstructured(network[0], "bias", 0.5), network)[1],
    "torch.func.vmap": mapped,
    "a scalar": scaled,
}


@pytest.mark.parametrize("change", CHANGES)
def test_layers_that_are_not_as_torch_made_them(change, device):
    network = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.LayerNorm(5), nn.Linear(5, 3))
    x, y = torch.randn(5, 4).double(), torch.randint(3, (5,))
    x[3, 0] = 10
    assert_as_by_autograd(CHANGES[change](network), x, y, device)


def test_examples_that_influence_each_other_are_taken_alone(device):
    class Centred(nn.Sequential):
        def forward(self, x):
            return self[1](torch.tanh(self[0](x - x.mean(0).detach())))

    x, y = torch.randn(5, 4).double(), torch.randint(3, (5,))
    assert_as_by_autograd(Centred(nn.Linear(4, 5), nn.Linear(5, 3)), x, y, device)


def test_rows_that_are_all_the_same_do_not_tell_whose_they_are(device):
    """The gradients that come back do."""
    x, y = torch.ones(6, 3, 4).double(), torch.tensor([0, 1, 2, 2, 1, 0])
    assert_as_by_autograd(TimeFirst(flat=True), x, y, device)


def test_a_population_whose_members_have_the_time_first(device):
    population = Population(TimeFirst, seeds=[0, 1]).to(device)
    x, y = torch.randn(2, 3, 6, 4), torch.randint(3, (2, 3))
    found = Inspection(population, x, y)._by_member(lambda member: gradient_grams(member, cross_entropy))
    for index in range(2):
        for name, gradients in naive_gradients(population.member(index), x[index], y[index]).items():
            torch.testing.assert_close(
                found[name][index].cpu(), (gradients @ gradients.T).double(), rtol=1e-4, atol=1e-6, msg=name
            )


@pytest.mark.parametrize("name", ["perceptron", "tokens", "residual"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("wrong", [None, math.nan], ids=["finite", "not finite"])
def test_a_closed_form_that_holds_is_taken(monkeypatch, name, dtype, wrong, device):
    """Rounding is no reason for a backward pass an example, nor is a network that has diverged."""
    network, x, y = network_and_probe(name)
    if wrong is not None:
        next(network.parameters()).data.view(-1)[0] = wrong
    monkeypatch.setattr(per_example, "_one_by_one", None)
    found = grams(network.to(dtype), x.to(dtype), y, device)
    assert len(found) == len(list(network.parameters()))


class Backbone(nn.Module):
    """Its first part, or all of it, runs without gradients, though its parameters would take them."""

    def __init__(self, everything):
        super().__init__()
        self.everything = everything
        self.inner, self.own, self.head = nn.Linear(4, 5), nn.PReLU(), nn.Linear(5, 3)

    def forward(self, x):
        with torch.no_grad():
            h = self.own(self.inner(x))
        with torch.set_grad_enabled(not self.everything):
            return self.head(h)


@pytest.mark.parametrize("everything", [False, True])
def test_what_runs_without_gradients_has_none(everything, device):
    network, x, y = Backbone(everything), torch.randn(5, 4).double(), torch.randint(3, (5,))
    assert_as_by_autograd(network, x, y, device)
    inspection = Inspection(network, x, y)
    for name in ("gradient_norm", "gradient_effective_rank"):
        found = DIAGNOSTICS[name](inspection)
        assert found["inner"] == 0
        assert (found["head"] > 0) == (not everything)


class Classifier(nn.Module):
    """Returns its state too, ``(layers, batch, units)``."""

    def __init__(self):
        super().__init__()
        self.enter, self.lstm, self.head = nn.Linear(4, 5), nn.LSTM(5, 6, 2, batch_first=True), nn.Linear(6, 3)

    def forward(self, x):
        h, state = self.lstm(self.enter(x))
        return self.head(h[:, -1]), state


def of_both(outputs, labels):
    logits, (h, _) = outputs
    return cross_entropy(logits, labels) + h[-1].square().mean()


@pytest.mark.parametrize("loss", [lambda outputs, labels: cross_entropy(outputs[0], labels), of_both])
@pytest.mark.parametrize("examples", [1, 2, 4, 5])
def test_outputs_that_do_not_have_the_batch_first(loss, examples, device):
    x, y = torch.randn(examples, 3, 4).double(), torch.randint(3, (examples,))
    assert_as_by_autograd(Classifier(), x, y, device, loss)


def test_an_output_that_is_of_no_example(device):
    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            return {"logits": self.head(x), "penalty": self.head.weight.square().sum()}

    def loss(outputs, labels):
        return cross_entropy(outputs["logits"], labels) + outputs["penalty"]

    assert_as_by_autograd(Counted(), torch.randn(5, 4).double(), torch.randint(3, (5,)), device, loss)


def test_a_loss_that_weighs_its_examples_is_taken_on_each_alone(device):
    def weighted(outputs, labels):
        return cross_entropy(outputs, labels, weight=outputs.new_tensor([1.0, 5.0, 0.5]))

    network, x, y = network_and_probe("perceptron")
    for name, gradients in naive_gradients(network, x, y, weighted).items():
        found = grams(network, x, y, device, weighted)[name]
        torch.testing.assert_close(found, (gradients @ gradients.T).double(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_ranks_and_conditions_against_numpy(name, device):
    network, x, y = network_and_probe(name)
    network, x = network.double(), x.double() if x.is_floating_point() else x
    gradients = {key: g.numpy() for key, g in naive_gradients(network, x, y).items()}
    gradients[""] = np.concatenate(list(gradients.values()), axis=1)
    gradients = {key.replace(".parametrizations.weight.original", ".weight"): g for key, g in gradients.items()}
    inspection = Inspection(network.to(device), x, y)
    ranks, conditions = (DIAGNOSTICS[f"gradient_{what}"](inspection) for what in ("effective_rank", "condition_number"))
    assert ranks.keys() == conditions.keys() == inspection.singular_values.keys() - {"frozen"} | {""}
    for layer, rank in ranks.items():
        matrix = gradients[layer] if layer in gradients else gradients[f"{layer}.weight"]
        values = np.linalg.svd(matrix, compute_uv=False)
        shares = values[values > 1e-7 * values[0]] / values.sum() if values[0] else np.zeros(0)
        expected = math.exp(-(shares * np.log(shares)).sum()) if len(shares) else 0
        assert rank.item() == pytest.approx(expected, rel=1e-4), layer
        if values[0] and values[-1] > 1e-5 * values[0]:
            assert conditions[layer].item() == pytest.approx(values[0] / values[-1], rel=1e-3), layer
        elif not values[0] or values[-1] < 1e-10 * values[0]:
            assert conditions[layer] == math.inf, layer


def test_equal_examples_have_one_direction_and_orthogonal_ones_all(device):
    network = nn.Linear(6, 2, bias=False).to(device)
    network.weight.data.zero_()
    label = torch.zeros(6, dtype=torch.int64)
    same, apart = (Inspection(network, x, label) for x in (torch.ones(6, 6), torch.eye(6)))
    assert DIAGNOSTICS["gradient_effective_rank"](same)[""].item() == pytest.approx(1)
    assert DIAGNOSTICS["gradient_condition_number"](same)[""] == math.inf
    assert DIAGNOSTICS["gradient_effective_rank"](apart)[""].item() == pytest.approx(6)
    assert DIAGNOSTICS["gradient_condition_number"](apart)[""].item() == pytest.approx(1)


def test_fewer_parameters_than_examples(device):
    """The matrix is 2 x 50; its smallest singular value is the second, not the fiftieth."""
    network, x, y = nn.Linear(2, 1, bias=False).double(), torch.randn(50, 2).double(), torch.randn(50, 1).double()
    values = np.linalg.svd(naive_gradients(network, x, y, mse_loss)["weight"].numpy(), compute_uv=False)
    inspection = Inspection(network.to(device), x, y, loss=mse_loss)
    found = {name: value.item() for name, value in DIAGNOSTICS["gradient_condition_number"](inspection).items()}
    assert found == {"": pytest.approx(values[0] / values[1]), "weight": pytest.approx(values[0] / values[1])}


def test_no_gradient_at_all(device):
    network = nn.Linear(3, 2).to(device)
    inspection = Inspection(network, torch.zeros(4, 3), torch.zeros(4, 2), loss=lambda out, y: (0 * out).mean())
    assert DIAGNOSTICS["gradient_norm"](inspection)[""] == 0
    assert DIAGNOSTICS["gradient_effective_rank"](inspection)[""] == 0
    assert DIAGNOSTICS["gradient_condition_number"](inspection)[""] == math.inf


@pytest.mark.parametrize("name", NETWORKS)
def test_gradient_norm(name, device):
    network, x, y = network_and_probe(name)
    found = DIAGNOSTICS["gradient_norm"](Inspection(network.to(device), x, y))
    alone = copy.deepcopy(network).cpu().eval()
    cross_entropy(alone(x), y).backward()
    expected = {
        key.removesuffix(".weight"): 0.0 if p.grad is None else p.grad.norm().item()
        for key, p in alone.named_parameters()
        if p.requires_grad
    }
    assert {key: value.item() for key, value in found.items() if key} == pytest.approx(expected, rel=1e-4, abs=1e-7)
    assert found[""].item() == pytest.approx(math.hypot(*expected.values()), rel=1e-4)


def test_gradient_norm_and_inner_products_belong_together(device):
    """‖mean of g‖² is the mean of all inner products."""
    network, x, y = network_and_probe("residual")
    total = torch.stack(list(grams(network, x, y, device).values())).sum(0).mean().sqrt()
    assert DIAGNOSTICS["gradient_norm"](Inspection(network, x, y))[""].item() == pytest.approx(total.item(), rel=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_population_is_lone_networks(name, device):
    population = Population(lambda: network_and_probe(name, seed=int(torch.randint(9, ())))[0], seeds=[0, 1])
    population.to(device)
    x, y = (torch.stack([network_and_probe(name, seed=seed)[part] for seed in range(2)]) for part in (1, 2))
    together = Inspection(population, x, y)
    alone = [Inspection(population.member(index), x[index], y[index]) for index in range(2)]
    for diagnostic in ("gradient_norm", "gradient_effective_rank"):
        found = DIAGNOSTICS[diagnostic](together)
        for layer, value in found.items():
            expected = torch.stack([DIAGNOSTICS[diagnostic](each)[layer] for each in alone])
            torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)


def test_gradients_in_no_grad_and_with_frozen_parameters(device):
    network, x, y = perceptron().to(device), torch.randn(5, 4), torch.randint(3, (5,))
    network[0].requires_grad_(False)
    with torch.no_grad():
        inspection = Inspection(network, x, y)
        found = DIAGNOSTICS["gradient_norm"](inspection) | DIAGNOSTICS["gradient_effective_rank"](inspection)
    assert "0" not in found
    assert found["3"] > 1


def test_gradients_in_inference_mode(device):
    network, x, y = perceptron().to(device), torch.randn(5, 4), torch.randint(3, (5,))
    for name in ("gradient_norm", "gradient_effective_rank"):
        expected = DIAGNOSTICS[name](Inspection(network, x, y))
        with torch.inference_mode():
            assert DIAGNOSTICS[name](Inspection(network, x, y)) == expected
    assert expected[""] > 1


def test_a_network_of_frozen_parameters_has_no_gradients():
    inspection = Inspection(perceptron().requires_grad_(False), torch.randn(5, 4), torch.randint(3, (5,)))
    with pytest.raises(ValueError, match="gradients for gradient_norm"):
        DIAGNOSTICS["gradient_norm"](inspection)


def test_outputs_may_be_a_structure_with_more_than_tensors(device):
    class Cached(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return {"cache": object(), "logits": self.inner(x), "hidden": x}

    network, x, y = network_and_probe("perceptron")
    found = grams(Cached(network), x, y, device, lambda outputs, labels: cross_entropy(outputs["logits"], labels))
    for name, gram in grams(network, x, y, device).items():
        assert torch.equal(gram, found[f"inner.{name}"])
