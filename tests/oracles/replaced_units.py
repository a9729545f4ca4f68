"""A multi-layer perceptron trained step by step in the open, for the methods that replace units: slow, obvious.

Nothing here shares a line with the library: units are replaced one entry at a time, in Python loops.
"""

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from supple.mitigators.kernels import SEED_OFFSET

OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "sgd": lambda network: torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9),
    "adam": lambda network: torch.optim.Adam(network.parameters(), lr=0.01, amsgrad=True),
}


def perceptron(seed: int = 0) -> nn.Sequential:
    """Three linear layers with ReLUs; some hidden units start silent, some nearly."""
    torch.manual_seed(seed)
    layers = [nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 3)]
    network = nn.Sequential(*layers).double()
    with torch.no_grad():
        for layer in (network[0], network[2]):
            layer.bias[:3] = torch.tensor([-9.0, -2.5, -1.5])
    return network


def batches(steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x, y = (torch.randn(8, size, generator=random, dtype=torch.float64) for size in (4, 3))
        yield x, y


def train(network: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    optimizer.zero_grad()
    (network(x) - y).square().mean().backward()
    optimizer.step()


class Replacing:
    """A perceptron that is trained together with a method written out by hand in :meth:`judge`."""

    def __init__(self, network: nn.Sequential, optimizer: str, seed: int = 0) -> None:
        self.network = copy.deepcopy(network)
        self.layers = [self.network[index] for index in (0, 2, 4)]
        self.optimizer = OPTIMIZERS[optimizer](self.network)
        self.random = torch.Generator().manual_seed(SEED_OFFSET + seed)
        self.steps = self.replaced = 0

    def judge(self, layer: int, h: Tensor) -> list[int]:
        """The units of a hidden layer to replace, after a step on a batch where they were ``h`` (examples, units)."""
        raise NotImplementedError

    def step(self, batch: tuple[Tensor, Tensor]) -> None:
        x, y = batch
        with torch.no_grad():
            hidden = [torch.relu(self.layers[0](x))]
            hidden.append(torch.relu(self.layers[1](hidden[0])))
        train(self.network, self.optimizer, (x, y))
        self.steps += 1
        with torch.no_grad():
            units = [self.judge(layer, h) for layer, h in enumerate(hidden)]
            for layer, chosen in enumerate(units):
                self.enter(layer, chosen)
            for layer, chosen in enumerate(units):
                for unit in chosen:
                    for row in range(self.layers[layer + 1].out_features):
                        self.write(self.layers[layer + 1].weight, (row, unit), 0.0)
                    self.replaced += 1

    def enter(self, layer: int, chosen: list[int]) -> None:
        fresh = self.fresh(layer, chosen)
        for unit in chosen:
            for column in range(self.layers[layer].in_features):
                self.write(self.layers[layer].weight, (unit, column), fresh[unit][column].item())
            self.write(self.layers[layer].bias, (unit,), 0.0)

    def fresh(self, layer: int, chosen: list[int]) -> dict[int, Tensor]:
        """New incoming weights, drawn for the chosen ones in their order."""
        rows = self.draw(layer, len(chosen)) if chosen else []
        return dict(zip(chosen, rows, strict=True))

    def draw(self, layer: int, count: int) -> Tensor:
        inputs = self.layers[layer].in_features
        rows = torch.empty(count, inputs, dtype=torch.float64)
        return rows.uniform_(-(inputs**-0.5), inputs**-0.5, generator=self.random)

    def write(self, parameter: Tensor, entry: tuple[int, ...], value: float) -> None:
        parameter[entry] = value
        for state in self.optimizer.state[parameter].values():
            if isinstance(state, Tensor) and state.ndim:
                state[entry] = 0.0


def assert_same(network: nn.Module, optimizer: torch.optim.Optimizer, oracle: Replacing, step: int) -> None:
    """Parameters and everything that the optimizer remembers."""
    for (name, mine), theirs in zip(network.named_parameters(), oracle.network.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"step {step}, {n}: {m}")
        state = oracle.optimizer.state[theirs]
        for key, tensor in optimizer.state[mine].items():
            torch.testing.assert_close(
                tensor, state[key], rtol=1e-9, atol=1e-12, msg=lambda m, n=name, k=key: f"step {step}, {n} {k}: {m}"
            )
