"""The networks: architecture, starting weights, and that populations and methods find their way in them."""

from collections import Counter
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, layer_norm, linear, max_pool2d

from supple import L2InitRegularizer, Population, ReDo, SpectralRegularizer
from supple.lab.datasets import Dataset, Examples
from supple.lab.models import MODELS, conv, find, mlp, resnet18, vit_tiny
from supple.mitigators.fresh import FreshParameters
from supple.network.find_roles import find_roles
from supple.network.units import find_units


def data(*shape, classes=7, count=5):
    pixels = torch.randint(256, (count, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    examples = Examples(pixels, torch.arange(count) % classes)
    return Dataset(examples, None, None, classes, (0.5,) * shape[0], (0.25,) * shape[0])


def inputs(data):
    return data.normalized(data.train.images)


def seeded(make_model, seed=3):
    torch.manual_seed(seed)
    return make_model()


def size(network):
    return sum(parameter.numel() for parameter in network.parameters())


DATA = data(3, 4, 6)
OFF_THE_SHELF = ("resnet18", "vit-tiny")
SMALLEST = {"conv": (3, 16, 16)} | dict.fromkeys(OFF_THE_SHELF, (3, 4, 4))  # 16 patches of one pixel


@pytest.mark.parametrize("shape", [(3, 18, 20), (1, 16, 16)])
@pytest.mark.parametrize("model", MODELS)
def test_images_to_classes(model, shape):
    images = data(*shape)
    outputs = find(model)(images).eval()(inputs(images))
    assert outputs.shape == (5, 7)
    assert not torch.isclose(outputs[0], outputs[1:]).any()  # other images, other outputs


def by_hand(layer_norm):
    layers = [nn.Flatten()]
    for before, after in pairwise([72, 256, 256, 256, 256]):
        layers += [nn.Linear(before, after)]
        layers += [nn.LayerNorm(after)] if layer_norm else []
        layers += [nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(256, 7))


@pytest.mark.parametrize("layer_norm", [False, True])
def test_the_mlp_is_four_times_256(layer_norm):
    expected, network = seeded(partial(by_hand, layer_norm)), seeded(partial(mlp, DATA, layer_norm=layer_norm))
    assert str(network) == str(expected)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor), name


def test_width_and_depth():
    widths = [module.out_features for module in mlp(DATA, width=9, depth=2) if isinstance(module, nn.Linear)]
    assert widths == [9, 9, 7]


def test_a_narrowing_leaky_network():
    layers = [*find("mlp-300-150-leaky")(DATA)]
    assert [layer.out_features for layer in layers if isinstance(layer, nn.Linear)] == [300, 150, 7]
    assert [layer.negative_slope for layer in layers if isinstance(layer, nn.LeakyReLU)] == [0.01, 0.01]
    assert not any(isinstance(layer, nn.ReLU) for layer in layers)


def test_a_leaky_network_takes_no_other_activation():
    with pytest.raises(ValueError, match="expected ReLU in a network with leaky ReLU, got activation='crelu'"):
        find("mlp-300-150-leaky")(DATA, activation="crelu")


MLP_BLOCK = 192 * 768 + 768 + 768 * 192 + 192
ATTENTION = 4 * (192 * 192 + 192)


def resnet_size(width):
    """Four stages of two blocks of two convolutions; the first block of the last three has a shortcut."""
    stages = [(width, width), (width, 2 * width), (2 * width, 4 * width), (4 * width, 8 * width)]
    body = sum(9 * b * a + 3 * 9 * b * b + 4 * 2 * b + (a != b) * (a * b + 2 * b) for a, b in stages)
    return width * 49 * 3 + 2 * width + body + 8 * width * 10 + 10


RESNET = resnet_size(64)


@pytest.mark.parametrize(
    ("model", "shape", "classes", "parameters"),
    [
        ("conv", (3, 32, 32), 2, 76 * 16 + 401 * 16 + 401 * 100 + 101 * 100 + 101 * 2),
        ("conv", (1, 28, 28), 10, 26 * 16 + 401 * 16 + 257 * 100 + 101 * 100 + 101 * 10),
        ("resnet18", (3, 32, 32), 10, RESNET),
        ("resnet18", (3, 64, 64), 10, RESNET),
        ("resnet18-narrow", (3, 32, 32), 10, resnet_size(16)),
        ("vit-tiny", (3, 32, 32), 10, (49 + 1 + 65) * 192 + 12 * (ATTENTION + MLP_BLOCK + 768) + 384 + 1930),
        ("vit-tiny", (3, 64, 64), 10, (193 + 1 + 65) * 192 + 12 * (ATTENTION + MLP_BLOCK + 768) + 384 + 1930),
        ("vit-tiny", (1, 28, 28), 10, (17 + 1 + 50) * 192 + 12 * (ATTENTION + MLP_BLOCK + 768) + 384 + 1930),
    ],
)
def test_sizes_by_hand(model, shape, classes, parameters):
    assert size(find(model)(data(*shape, classes=classes))) == parameters


def test_resnet18_has_the_published_size():
    assert RESNET - 513 * 10 + 513 * 1000 == 11_689_512  # with ImageNet's thousand classes


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("activation", ["relu", "crelu", "fourier"])
def test_the_convolutional_network_by_hand(norm, activation):
    images = data(3, 32, 32, classes=2)
    network = conv(images, layer_norm=norm, activation=activation)
    parameters = list(network.parameters())

    def act(x):
        parts = {"relu": [x.relu()], "crelu": [x.relu(), (-x).relu()], "fourier": [x.sin(), x.cos()]}
        x = torch.cat(parts[activation], 1)
        return max_pool2d(x, 2) if x.ndim == 4 else x

    x = inputs(images)
    for layer in range(5):
        weight, bias = parameters.pop(0), parameters.pop(0)
        x = torch.nn.functional.conv2d(x, weight, bias) if layer < 2 else linear(x.flatten(1), weight, bias)
        if layer < 4 and norm:
            gain, shift = parameters.pop(0), parameters.pop(0)
            if layer < 2:  # over channels and places together
                x = (x - x.mean((1, 2, 3), keepdim=True)) / (x.var((1, 2, 3), False, keepdim=True) + 1e-5).sqrt()
                x = x * gain.view(-1, 1, 1) + shift.view(-1, 1, 1)
            else:
                x = layer_norm(x, x.shape[1:], gain, shift)
        x = act(x) if layer < 4 else x
    assert not parameters
    torch.testing.assert_close(network(inputs(images)), x)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (2, 16, 40)])
def test_crelu_has_the_widths_whose_size_is_nearest(shape, norm):
    """All cuts of 100 units, with as many channels as 16 are of 100, each counted by hand."""
    places = ((shape[1] - 4) // 2 - 4) // 2 * (((shape[2] - 4) // 2 - 4) // 2)

    def count(units, maps, passed_on):
        features = shape[0] * 25, passed_on * maps * 25, passed_on * maps * places, passed_on * units
        layers = zip(features, (maps, maps, units, units), strict=True)
        return sum((before + 1 + 2 * norm) * after for before, after in layers) + 7 * (passed_on * units + 1)

    goal = size(conv(data(*shape), layer_norm=norm))
    assert goal == count(100, 16, 1)
    sizes = [count(units, max(1, round(units * 16 / 100)), 2) for units in range(1, 101)]
    found = size(conv(data(*shape), layer_norm=norm, activation="crelu"))
    assert found in sizes
    assert abs(found - goal) == min(abs(other - goal) for other in sizes)


def transformers_own(model, images):
    from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

    if model == "resnet18":
        config = ResNetConfig(hidden_sizes=[64, 128, 256, 512], depths=[2] * 4, layer_type="basic", num_labels=7)
        return ResNetForImageClassification(config)
    sizes = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 12, "num_attention_heads": 3}
    return ViTForImageClassification(ViTConfig(**sizes, image_size=16, patch_size=2, num_labels=7))


@pytest.mark.parametrize("model", OFF_THE_SHELF)
def test_they_are_those_of_transformers(model):
    images = data(3, 16, 16)
    whole = seeded(partial(transformers_own, model, images))
    network = seeded(partial(find(model), images))
    for training in (True, False):
        expected = whole.train(training)(inputs(images)).logits
        torch.testing.assert_close(network.train(training)(inputs(images)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", OFF_THE_SHELF)
@pytest.mark.parametrize("option", [{"layer_norm": True}, {"activation": "crelu"}])
def test_what_they_do_not_have_is_refused(model, option):
    with pytest.raises(ValueError, match=rf"{next(iter(option))}.*, got {model}, .*choose mlp or conv"):
        find(model)(DATA, **option)


@pytest.mark.parametrize("model", OFF_THE_SHELF)
def test_spectral_normalization_of_every_matrix(model):
    network = find(model)(data(3, 4, 4), spectral_normalization=True)
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    assert len(layers) == {"resnet18": 21, "vit-tiny": 74}[model]
    norms = torch.stack([torch.linalg.matrix_norm(layer.eval().weight.flatten(1), 2) for layer in layers[::7]])
    torch.testing.assert_close(norms, torch.ones(len(norms)), rtol=0.1, atol=0)


def test_images_too_small_for_the_convolutions_are_refused():
    with pytest.raises(ValueError, match="16x16 or more for conv, got 15x20"):
        conv(data(3, 15, 20))


POPULATIONS = {
    "conv": conv,
    "conv with everything": partial(conv, layer_norm=True, activation="crelu", spectral_normalization=True),
    "resnet18": resnet18,
    "vit-tiny": vit_tiny,
}


@pytest.mark.parametrize("model", POPULATIONS)
def test_a_population_trains_as_lone_networks_do(model):
    images, seeds, steps = data(*SMALLEST[model.split()[0]], classes=3, count=6), (5, 6), 2
    make_model = partial(POPULATIONS[model], images)
    x, y = inputs(images).double(), images.train.labels
    population = Population(make_model, seeds).double()
    optimizer = torch.optim.SGD(population.parameters(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        outputs = population(x.expand(2, *x.shape))
        (cross_entropy(outputs[0], y) + cross_entropy(outputs[1], y.roll(1))).backward()
        optimizer.step()
    for index, (seed, labels) in enumerate(zip(seeds, (y, y.roll(1)), strict=True)):
        lone = seeded(make_model, seed).double()
        before = {name: parameter.detach().clone() for name, parameter in lone.named_parameters()}
        optimizer = torch.optim.SGD(lone.parameters(), lr=0.05)
        for _ in range(steps):
            optimizer.zero_grad()
            cross_entropy(lone(x), labels).backward()
            optimizer.step()
        member = population.member(index).state_dict()
        for name, tensor in lone.state_dict().items():
            torch.testing.assert_close(member[name], tensor, rtol=1e-6, atol=1e-9, msg=lambda text, n=name: n + text)
        assert not any(torch.equal(parameter, before[name]) for name, parameter in lone.named_parameters())


def test_pooling_before_relu_is_the_same_as_after_it():
    network = find("conv")(shown := data(3, 32, 32))
    layers = list(network)
    for at in (1, 4):
        assert [type(layer) for layer in layers[at : at + 2]] == [torch.nn.MaxPool2d, torch.nn.ReLU]
        layers[at : at + 2] = layers[at + 1], layers[at]
    results = []
    for model in (network, torch.nn.Sequential(*layers)):
        output = model(inputs(shown))
        results.append((output, *torch.autograd.grad(output.square().sum(), list(network.parameters()))))
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize(
    ("model", "kinds", "groups"),
    [
        ("conv", {"matrix": 5, "vector": 5}, {"0": 16, "3": 16, "7": 100, "9": 100}),
        # The first convolution of each block: the others are added to the residual stream.
        (
            "resnet18",
            {"matrix": 21, "scale": 20, "vector": 21},
            {f"{2 + s}.layers.{b}.layer.0.convolution": 64 * 2**s for s in range(4) for b in range(2)},
        ),
        # The hidden layer of each block, and neither attention nor the residual stream. Matrices: six a block, the
        # patches, the positions, the class token and the head.
        ("vit-tiny", {"matrix": 76, "scale": 25, "vector": 99}, {f"{1 + b}.mlp.fc1": 768 for b in range(12)}),
    ],
)
def test_roles_and_units(model, kinds, groups):
    network = find(model)(data(3, 32, 32))
    assert Counter(role.kind for role in find_roles(network).values()) == kinds
    assert {group.name: group.size for group in find_units(network)[0]} == groups


@pytest.mark.parametrize("model", OFF_THE_SHELF)
def test_parameters_drawn_anew_are_drawn_as_they_were_at_first(model):
    network = find(model)(data(3, 4, 4))
    first = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    fresh = FreshParameters(network, list(first)).draw([torch.Generator().manual_seed(1)])
    constant = {name for name, values in first.items() if values.min() == values.max()}
    assert len(constant) == {"resnet18": 40, "vit-tiny": 124}[model]  # norms; for ViT all biases too
    for name, values in first.items():
        if name in constant:
            assert torch.equal(fresh[name], values)
        else:
            assert (fresh[name] == values).float().mean() < 0.01
            deviations = (2 / values.numel()) ** 0.5  # relative, of a sample's standard deviation; twice that
            assert fresh[name].std().item() == pytest.approx(values.std().item(), rel=0.02 + 3 * deviations)


@pytest.mark.parametrize("model", ["conv", *OFF_THE_SHELF])
def test_they_learn_with_methods_attached(model):
    images = data(*SMALLEST[model], classes=3, count=12)
    network = seeded(partial(find(model), images))
    optimizer = torch.optim.Adam(network.parameters(), lr={"vit-tiny": 3e-4}.get(model, 1e-3))
    for method in (SpectralRegularizer(network, 1e-4), L2InitRegularizer(network, 1e-4), ReDo(network, every=3)):
        method.attach(optimizer)
    losses = []
    for _ in range({"conv": 30, "resnet18": 8, "vit-tiny": 14}[model]):
        optimizer.zero_grad()
        loss = cross_entropy(network(inputs(images)), images.train.labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_any_function_is_a_model():
    assert find("supple.lab.models:conv") is conv
    for name, message in (("resnet19", "did you mean 'resnet18'"), ("supple.lab.models:MODELS", "got dict at")):
        with pytest.raises(ValueError, match=message):
            find(name)
