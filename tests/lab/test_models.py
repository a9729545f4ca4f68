"""The networks: architecture, and torch's own starting weights."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from supple.lab.datasets import Dataset, Examples
from supple.lab.models import MODELS, mlp

EXAMPLES = Examples(torch.zeros(5, 3, 4, 6, dtype=torch.uint8), torch.zeros(5, dtype=torch.int64))
DATA = Dataset(EXAMPLES, None, None, 7, (0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_images_to_classes(model):
    assert model(DATA)(DATA.normalized(EXAMPLES.images)).shape == (5, 7)


def by_hand(layer_norm):
    layers = [nn.Flatten()]
    for inputs, outputs in pairwise([72, 256, 256, 256, 256]):
        layers += [nn.Linear(inputs, outputs)]
        layers += [nn.LayerNorm(outputs)] if layer_norm else []
        layers += [nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(256, 7))


@pytest.mark.parametrize("layer_norm", [False, True])
def test_the_mlp_is_four_times_256(layer_norm):
    torch.manual_seed(3)
    expected = by_hand(layer_norm)
    torch.manual_seed(3)
    network = mlp(DATA, layer_norm=layer_norm)
    assert str(network) == str(expected)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor), name


def test_width_and_depth():
    widths = [module.out_features for module in mlp(DATA, width=9, depth=2) if isinstance(module, nn.Linear)]
    assert widths == [9, 9, 7]
