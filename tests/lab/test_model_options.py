"""The options that change a network: CReLU at a matching number of parameters, and spectral normalization."""

import pytest
import torch
from torch import nn

from supple import Population
from supple.lab.datasets import Dataset, Examples
from supple.lab.models import mlp
from supple.nn import CReLU, FourierFeatures


def data(shape=(1, 6, 6), classes=7):
    examples = Examples(torch.zeros(2, *shape, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))
    return Dataset(examples, None, None, classes, (0.0,) * shape[0], (1.0,) * shape[0])


def size(network):
    return sum(parameter.numel() for parameter in network.parameters())


def by_hand(inputs, classes, width, depth, layer_norm):
    """A CReLU network of ``width`` units a layer."""
    layers = []
    for _ in range(depth):
        layers += [nn.Linear(inputs, width), *([nn.LayerNorm(width)] if layer_norm else []), CReLU()]
        inputs = 2 * width
    return nn.Sequential(*layers, nn.Linear(inputs, classes))


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize(("width", "depth"), [(1, 1), (10, 1), (64, 2), (33, 4), (3, 4)])
@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 2, 1)])
def test_crelu_has_the_width_whose_size_is_nearest(shape, width, depth, layer_norm):
    images = data(shape)
    inputs = images.train.images[0].numel()
    goal = size(mlp(images, width=width, depth=depth, layer_norm=layer_norm))
    network = mlp(images, width=width, depth=depth, layer_norm=layer_norm, activation="crelu")
    nearest = min(abs(size(by_hand(inputs, 7, cut, depth, layer_norm)) - goal) for cut in range(1, width + 1))
    assert abs(size(network) - goal) == nearest
    assert network(images.normalized(images.train.images)).shape == (2, 7)
    assert sum(isinstance(layer, CReLU) for layer in network) == depth
    assert not any(isinstance(layer, nn.ReLU) for layer in network)


def test_the_papers_network_is_matched_within_a_percent():
    images = data((1, 28, 28), 10)
    assert abs(size(mlp(images, activation="crelu")) / size(mlp(images)) - 1) < 0.01


@pytest.mark.parametrize("layer_norm", [False, True])
def test_fourier_features_pass_on_the_width_from_half_the_units(layer_norm):
    network = mlp(data(), width=10, depth=2, layer_norm=layer_norm, activation="fourier")
    shapes = [tuple(layer.weight.shape) for layer in network if isinstance(layer, nn.Linear)]
    assert shapes == [(5, 36), (5, 10), (7, 10)]
    assert sum(isinstance(layer, FourierFeatures) for layer in network) == 2
    assert not any(isinstance(layer, nn.ReLU) for layer in network)


def normalized(activation="relu"):
    return mlp(data(), width=20, depth=2, spectral_normalization=True, activation=activation)


def largest_singular_values(network):
    """Of the weights that the forward pass uses, and of those that are trained."""
    layers = [layer for layer in network if isinstance(layer, nn.Linear)]
    assert len(layers) == 3
    used = [layer.eval().weight for layer in layers]  # in training mode to look is to iterate
    trained = [layer.parametrizations.weight.original for layer in layers]
    return [[torch.linalg.matrix_norm(w.detach(), 2).item() for w in weights] for weights in (used, trained)]


@pytest.mark.parametrize("activation", ["relu", "crelu"])
def test_spectral_normalization_makes_every_largest_singular_value_one(activation):
    network = normalized(activation)
    assert size(network) == size(mlp(data(), width=20, depth=2, activation=activation))
    for _ in range(100):  # each a power iteration
        network(torch.rand(3, 1, 6, 6))
    used, trained = largest_singular_values(network)
    assert used == pytest.approx([1] * 3, rel=1e-2)
    assert trained != pytest.approx([1] * 3, rel=1e-1)


def test_spectral_normalization_in_a_population_that_trains():
    population = Population(normalized, [0, 1])
    optimizer = torch.optim.Adam(population.parameters(), lr=1e-2)
    x, y = torch.rand(2, 30, 1, 6, 6), 5 * torch.randn(2, 30, 7)
    for _ in range(40):
        optimizer.zero_grad()
        (population(x) - y).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        for _ in range(100):
            population(x)
    for index in range(2):
        used, trained = largest_singular_values(population.member(index))
        assert used == pytest.approx([1] * 3, rel=1e-2)
        assert min(trained) > 1.1
