"""How many operators a step takes: on a GPU each costs a launch, whatever its size."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from supple import (
    UPGD,
    ContinualBackprop,
    HareAndTortoise,
    L2InitRegularizer,
    L2Regularizer,
    Mitigator,
    NetworkReset,
    NormalizeAndProject,
    ParsevalRegularizer,
    ReDo,
    SelfNormalizedResets,
    ShrinkAndPerturb,
    SpectralNormRegularizer,
    SpectralRegularizer,
    StreamingEWC,
    WassersteinRegularizer,
    WeightClipping,
)
from supple.lab import datasets, models


class Operators(TorchDispatchMode):
    """Counts operators; views are free."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not operator.is_view and operator is not torch.ops.aten.detach.default:
            self.counts[str(operator)] += 1
        return operator(*args, **(kwargs or {}))


def of_images(model: str, size: int) -> nn.Module:
    examples = datasets.Examples(torch.zeros(1, 3, size, size, dtype=torch.uint8), torch.zeros(1, dtype=torch.long))
    network: nn.Module = models.find(model)(datasets.Dataset(examples, None, None, 10, (0.0,) * 3, (1.0,) * 3))
    return network


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(n_layer=12, n_embd=12, n_head=2, n_positions=16, vocab_size=32))


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize(
    ("make", "most"),
    [(lambda: of_images("mlp", 8), 45), (lambda: of_images("resnet18", 32), 130), (gpt2, 250)],
    ids=["mlp", "resnet18", "gpt2"],
)
def test_a_step_of_the_regularizer_takes_few_operators(
    make: Callable[[], nn.Module], most: int, decoupled: bool
) -> None:
    network = make()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with Operators() as without:
        optimizer.step()
    SpectralRegularizer(network, decoupled=decoupled).attach(optimizer)
    optimizer.step()  # the first step prepares what the others need
    with Operators() as attached:
        optimizer.step()
    added = attached.counts - without.counts
    assert 0 < added.total() <= most, added


# What each takes on the perceptron of ten parameters: more is to be noticed.
METHODS: dict[str, tuple[Callable[[nn.Module], Mitigator], int]] = {
    "L2": (L2Regularizer, 10),
    "L2 init": (L2InitRegularizer, 20),
    "Wasserstein": (WassersteinRegularizer, 100),
    "spectral norm": (SpectralNormRegularizer, 46),
    "Parseval": (ParsevalRegularizer, 16),
    "Parseval, decoupled": (partial(ParsevalRegularizer, decoupled=True), 56),
    "streaming EWC": (StreamingEWC, 10),
    "shrink and perturb": (ShrinkAndPerturb, 60),
    "shrink and perturb with noise": (partial(ShrinkAndPerturb, variant="step-noise"), 70),
    "UPGD": (UPGD, 70),
    "normalize and project": (NormalizeAndProject, 45),  # two a matrix for those that are zero at first
    "weight clipping": (partial(WeightClipping, strength=1.0), 10),
    "hare and tortoise": (HareAndTortoise, 30),
    "ReDo": (ReDo, 8),
    "continual backprop": (ContinualBackprop, 124),
    "self-normalized resets": (SelfNormalizedResets, 76),
    "network reset": (NetworkReset, 22),
}


@pytest.mark.parametrize("name", METHODS)
def test_no_method_takes_more_operators_than_it_did(name: str) -> None:
    make, most = METHODS[name]
    network = of_images("mlp", 8)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    method = make(network)

    def operators_of_a_step() -> Counter[str]:
        network(torch.ones(2, 3, 8, 8)).sum().backward()
        with Operators() as operators:
            optimizer.step()
        return operators.counts

    without = operators_of_a_step()
    method.attach(optimizer)
    operators_of_a_step()  # the first step prepares what the others need
    added = operators_of_a_step() - without
    assert 0 < added.total() <= most, added


def test_parameters_of_two_data_types_are_pulled_apart() -> None:
    torch.manual_seed(0)
    network = nn.ModuleList([nn.Linear(5, 4), nn.Linear(5, 4).double()])
    alone = nn.ModuleList([nn.Linear(5, 4), nn.Linear(5, 4)])
    alone.load_state_dict(network.state_dict())
    for each in (network, alone):
        regularizer = SpectralRegularizer(each, strength=0.1)
        for _ in range(3):
            for parameter in each.parameters():
                parameter.grad = torch.zeros_like(parameter)
            regularizer.before_step()
    for one, other in zip(network.parameters(), alone.parameters(), strict=True):
        assert one.grad is not None
        assert one.grad.any()
        torch.testing.assert_close(one.grad, other.grad, check_dtype=False)


class Arguments(TorchDispatchMode):
    """Counts the tensors that operators get, which is what many small ones cost."""

    count = 0

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += sum(isinstance(leaf, torch.Tensor) for leaf in tree_leaves((args, kwargs)))
        return operator(*args, **(kwargs or {}))


def test_a_depthwise_convolution_costs_no_more_operators_than_one_of_two_groups() -> None:
    """Each of its hundreds of groups is a matrix."""
    counts = []
    for groups in (2, 256):
        network = nn.Sequential(nn.Conv2d(groups, groups, 3, groups=groups), nn.Conv2d(groups, 4, 1))
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
        SpectralRegularizer(network).attach(optimizer)
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        with Arguments() as arguments:
            optimizer.step()
        counts.append(arguments.count)
    assert counts[0] == counts[1]
