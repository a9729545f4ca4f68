"""What would rewrite a trained network is said before it happens; fresh networks draw no warning."""

import math
import re
import warnings
from itertools import pairwise

import pytest
import torch
from torch import nn

from supple import Population, SpectralNormRegularizer, SpectralRegularizer, WeightClipping
from supple.mitigators.forecast import RewriteWarning, looks_fresh
from supple.rl.networks import Critic
from supple.rl.presets import Constants
from support.resting import resting


def mlp(*sizes):
    layers = [module for a, b in pairwise(sizes) for module in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def resnet(kind, depths):
    from transformers import ResNetConfig, ResNetForImageClassification

    sizes = [64, 128, 256, 512] if kind == "basic" else [256, 512, 1024, 2048]
    return ResNetForImageClassification(ResNetConfig(hidden_sizes=sizes, depths=depths, layer_type=kind, num_labels=10))


def vit():
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=192, num_hidden_layers=3, num_attention_heads=3, intermediate_size=768, image_size=32, patch_size=4
    )
    return ViTForImageClassification(config)


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=192, n_head=3, vocab_size=1000, bos_token_id=0, eos_token_id=0))


FRESH = {
    "mlp": lambda: mlp(784, 256, 256, 10),
    "mlp-narrow": lambda: mlp(3, 256, 256, 1),
    "mlp-one-input": lambda: mlp(1, 128, 1),
    "mlp-wide": lambda: mlp(10, 4096, 10),
    "conv": lambda: nn.Sequential(nn.Conv2d(3, 16, 5), nn.ConvTranspose2d(16, 3, 4), nn.Conv2d(3, 6, 3, groups=3)),
    "lstm": lambda: nn.LSTM(40, 128, 2),
    "transformer": lambda: nn.TransformerEncoderLayer(64, 4),
    "agent": lambda: Critic(5, 2, Constants()),
    "population": lambda: Population(lambda: mlp(4, 64, 2), range(3)),
    "resnet18": lambda: resnet("basic", [2, 2, 2, 2]),
    "resnet50": lambda: resnet("bottleneck", [1, 1, 1, 1]),
    "vit": vit,
    "gpt2": gpt2,
}


def warned(network, method=SpectralRegularizer, lr=1e-3, optimizer=torch.optim.AdamW, **options):
    """The texts of the warnings at attach, which is done twice: there is at most one."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        built = method(network, **options)
        for _ in range(2):
            built.attach(optimizer(network.parameters(), lr=lr))
    return [str(each.message) for each in caught if issubclass(each.category, RewriteWarning)]


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("lr", [3e-4, 1e-3, 5e-3])
@pytest.mark.parametrize("name", FRESH)
def test_fresh_networks_draw_no_warning(name, lr, decoupled):
    assert warned(FRESH[name](), lr=lr, decoupled=decoupled) == []


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("name", ["mlp", "mlp-narrow", "agent", "lstm"])
def test_nor_do_they_with_gradient_descent(name, decoupled):
    assert warned(FRESH[name](), lr=0.1, optimizer=torch.optim.SGD, decoupled=decoupled) == []


def trained(sigmas, width=64):
    """Layers whose largest singular values stand out, as training makes them."""
    network = mlp(width, *(width for _ in sigmas))
    with torch.no_grad():
        for layer, sigma in zip((m for m in network if isinstance(m, nn.Linear)), sigmas, strict=True):
            u, _, vh = torch.linalg.svd(layer.weight)
            layer.weight.add_(sigma * torch.outer(u[:, 0], vh[0]))
    return network


def with_vectors(bias=0.5, gain=4.0):
    """Fresh matrices, but biases and gains as training may make them."""
    network = nn.Sequential(nn.Linear(32, 64), nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, 10))
    with torch.no_grad():
        for module in (network[0], network[1], network[3]):
            module.bias.normal_(0, bias)
        network[1].weight.normal_(gain, gain / 10)
    return network


def test_biases_and_gains_are_judged_too():
    (text,) = warned(with_vectors(), decoupled=True)
    assert re.search(r"move 3 parameters .*1\.weight \(gain [45]\.\d+, .* %\), 0\.bias \(norm 3\.", text)
    assert warned(with_vectors(), decoupled=True, target="initial") == []
    assert warned(with_vectors(0.05, 1.0), decoupled=True) == []
    assert len(warned(Population(with_vectors, range(2)), decoupled=True)) == 1


def test_how_far_they_would_move_is_how_far_they_move():
    network = with_vectors()
    optimizer = torch.optim.SGD(resting(network).parameters(), lr=1e-3)
    with pytest.warns(RewriteWarning) as caught:
        SpectralRegularizer(network, decoupled=True).attach(optimizer)
    told = dict(re.findall(r"(\S+) \(\w+ [\d.]+, ([\d.]+) %\)", str(caught[0].message)))
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    for _ in range(10):
        optimizer.step()
    assert len(told) == 3
    for name, share in told.items():
        moved = (network.get_parameter(name) - before[name]).norm() / before[name].norm()
        assert 100 * moved.item() == pytest.approx(float(share), rel=0.05)


def test_layers_that_are_thawed_or_given_to_the_optimizer_later_are_judged_then():
    network = trained([12.0, 12.0])
    resting(network)
    network[0].requires_grad_(False)
    optimizer = torch.optim.SGD(network[0].parameters(), lr=1e-3)
    optimizer.add_param_group({"params": network[2].bias})
    method = SpectralRegularizer(network, decoupled=True, roles={"2.bias": None, "0.bias": None})
    with warnings.catch_warnings():
        warnings.simplefilter("error", RewriteWarning)
        method.attach(optimizer)
        optimizer.step()
    network[0].requires_grad_(True)
    with pytest.warns(RewriteWarning, match=r"move 1 parameter .*0\.weight"):
        optimizer.step()
    optimizer.add_param_group({"params": network[2].weight})
    with pytest.warns(RewriteWarning, match=r"move 1 parameter .*2\.weight"):
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error", RewriteWarning)
        optimizer.step()


@pytest.mark.parametrize("lr", [1e-5, 5e-5, 1e-3])
def test_a_trained_network_is_warned_of_once_with_its_worst_layers_and_the_remedy(lr):
    network = trained([3.0, 12.0, 5.0, 8.0])
    before = [parameter.detach().clone() for parameter in network.parameters()]
    (text,) = warned(network, decoupled=True, lr=lr)
    assert text.index("2.weight (σ₁ 13") < text.index("6.weight (σ₁ 9") < text.index("4.weight (σ₁ 6")
    assert "0.weight" not in text
    assert 'target="initial"' in text
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True)), "before the first step"


def test_a_scaled_network_is_no_fresh_one():
    """Of random weights, but many times larger than any initialization."""
    network = mlp(64, 256, 10)
    with torch.no_grad():
        network[0].weight.mul_(23)
    (text,) = warned(network, decoupled=True, lr=5e-5)
    assert "0.weight" in text


@pytest.mark.parametrize(
    "options",
    [
        {"target": "initial", "decoupled": True},
        {"decoupled": True, "strength": 1e-7},
        {"decoupled": True, "strength": 0.0},
        {"decoupled": True, "lr": 1e-12},
        {"target": {"0.weight": 13.0, "2.weight": 13.0}, "decoupled": True},
        {"decoupled": True, "roles": {"0.weight": None, "2.weight": None}},
        {"strength": 1e-4},
    ],
    ids=str,
)
def test_what_does_not_change_it_much_draws_none(options):
    assert warned(trained([12.0, 12.0]), **{"lr": 5e-5, **options}) == []


def test_the_papers_form_warns_where_plain_gradient_descent_would_take_it_far():
    assert warned(trained([40.0]), lr=0.1, optimizer=torch.optim.SGD)
    assert warned(trained([40.0]), SpectralNormRegularizer, strength=0.1, lr=0.1, optimizer=torch.optim.SGD)


@pytest.mark.parametrize(("sigma", "count"), [(1.4, 0), (1.6, 1)])
def test_what_lies_near_its_target_draws_none(sigma, count):
    network = nn.Linear(64, 64, bias=False)
    nn.init.constant_(network.weight, sigma / 64)
    assert len(warned(network, decoupled=True)) == count


def test_a_little_more_than_random_weights_have_is_no_fresh_network():
    assert warned(trained([0.5]), decoupled=True)


def test_clipping_looks_at_each_member():
    assert warned(Population(lambda: trained([2.0]), range(7)), WeightClipping, strength=2.0)


def test_a_warm_up_does_not_hide_it():
    network = trained([12.0])
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 100)
    assert optimizer.param_groups[0]["lr"] == 0
    with pytest.warns(RewriteWarning):
        SpectralRegularizer(network, decoupled=True).attach(optimizer)


def test_a_network_that_was_trained_with_the_method_goes_on_without_a_warning():
    torch.manual_seed(0)
    network = mlp(16, 64, 64, 4)
    x, y = torch.randn(256, 16), torch.randint(4, (256,))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    SpectralRegularizer(network, decoupled=True).attach(optimizer)
    for _ in range(400):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    assert warned(network, decoupled=True, lr=3e-3) == []


def test_clipping_says_what_it_would_cut():
    assert warned(mlp(784, 256, 10), WeightClipping, strength=1.0) == []
    (text,) = warned(trained([3.0, 30.0]), WeightClipping, strength=1.0)
    assert text.index("2.weight") < text.index("0.weight")
    assert "smaller strength" in text


def test_a_step_size_that_has_grown_counts():
    """As of OneCycleLR, whose ``initial_lr`` is the smallest."""
    network = trained([12.0])
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    optimizer.param_groups[0]["initial_lr"] = 1e-9
    with pytest.warns(RewriteWarning):
        SpectralRegularizer(network, decoupled=True).attach(optimizer)


@pytest.mark.parametrize(("factor", "fresh"), [(1.4, True), (1.6, False)])
def test_entries_half_as_large_again_as_those_of_he_are_the_largest_of_a_fresh_matrix(factor, fresh):
    size = factor * math.sqrt(2 / 64)
    assert looks_fresh(16 * size, 64 * size, 64, 64) == fresh  # σ₁ is where random entries have it


def test_near_is_relative_to_the_target():
    """A σ₁ of 6 is near a target of 5, and far from one of 1."""
    network = nn.Linear(32, 32, bias=False)
    with torch.no_grad():
        network.weight.mul_(0.01)[0, 0] = 6
    for target, is_near in ((5.0, True), (1.0, False)):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", RewriteWarning)
            SpectralRegularizer(network, decoupled=True, target=target).attach(optimizer)
        assert (not caught) == is_near
