"""Networks at rest: methods leave a parameter without a gradient alone, so give it one that asks for nothing."""

import torch
from torch import nn


def resting(network: nn.Module) -> nn.Module:
    """``network``, where every trainable parameter without a gradient now has a zero one."""
    for parameter in network.parameters():
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return network
