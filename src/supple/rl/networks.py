"""The networks of soft actor-critic: multi-layer perceptrons, configured by the constants of the presets."""

import math
import re

import torch
from torch import Tensor, nn

from supple.rl.presets import Constants


class OrthogonalLinear(nn.Linear):
    """A linear layer initialized (and reinitialized) as ``gain`` times an orthogonal matrix, with zero bias."""

    def __init__(self, inputs: int, outputs: int, gain: float = math.sqrt(2)) -> None:
        self.gain = gain
        super().__init__(inputs, outputs)

    def reset_parameters(self) -> None:
        nn.init.orthogonal_(self.weight, self.gain)
        nn.init.zeros_(self.bias)


class Actor(nn.Module):
    """From observations ``(..., size)`` to the mean and the log standard deviation of a Gaussian, before tanh."""

    def __init__(self, observation_size: int, action_size: int, constants: Constants) -> None:
        super().__init__()
        self.constants = constants
        self.body = _body(observation_size, constants)
        self.mean = _linear(constants.hidden[-1], action_size, constants)
        self.log_deviation = _linear(constants.hidden[-1], action_size, constants, gain=1.0)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(observation)
        return self.mean(features), self._bounded(self.log_deviation(features))

    def _bounded(self, value: Tensor) -> Tensor:
        low, high = self.constants.log_deviation
        if self.constants.bounded_by == "clamp":
            return value.clamp(low, high)
        return low + (high - low) / 2 * (1 + torch.tanh(value))


class Critic(nn.Module):
    """From observations and actions to their values ``(..., critics)``, one from each independent perceptron."""

    def __init__(self, observation_size: int, action_size: int, constants: Constants) -> None:
        super().__init__()
        self.critics = nn.ModuleList(
            nn.Sequential(_body(observation_size + action_size, constants), _linear(constants.hidden[-1], 1, constants))
            for _ in range(constants.critics)
        )

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        inputs = torch.cat([observation, action], -1)
        return torch.cat([critic(inputs) for critic in self.critics], -1)


def layers_of(network: nn.Module) -> list[list[str]]:
    """Names of the parameters by layer, starting at the input; all heads together are the last layer."""
    layers: dict[int, list[str]] = {}
    hidden = {module for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    for name, _ in network.named_parameters():
        block = re.search(r"block(\d+)", name)
        layers.setdefault(int(block[1]) if block else len(hidden), []).append(name)
    return [layers[index] for index in sorted(layers)]


def _body(inputs: int, constants: Constants) -> nn.Sequential:
    body = nn.Sequential()
    for index, width in enumerate(constants.hidden):
        block = nn.Sequential(_linear(inputs, width, constants))
        if constants.layer_norm:
            block.append(nn.LayerNorm(width, eps=1e-6))
        body.add_module(f"block{index}", block.append(nn.ReLU()))
        inputs = width
    return body


def _linear(inputs: int, outputs: int, constants: Constants, gain: float = math.sqrt(2)) -> nn.Linear:
    if constants.initialization == "torch":
        return nn.Linear(inputs, outputs)
    return OrthogonalLinear(inputs, outputs, gain)
