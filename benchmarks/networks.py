"""The networks whose steps are timed, each with a batch of random numbers; needs torch, and transformers for GPT-2."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from supple.lab import datasets, models


def of_images(model: str, *shape: int, classes: int) -> Callable[..., nn.Module]:
    """The function that builds a network of the laboratory for images of a shape."""
    examples = datasets.Examples(torch.zeros(1, *shape, dtype=torch.uint8), torch.zeros(1, dtype=torch.long))
    channels = (0.0,) * shape[0], (1.0,) * shape[0]
    return partial(models.find(model), datasets.Dataset(examples, None, None, classes, *channels))


class GPT2(nn.Module):
    """A transformer with the shape of GPT-2 small, 12 blocks of width 768; returns logits."""

    def __init__(self) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel

        super().__init__()
        self.whole = GPT2LMHeadModel(GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False))

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.whole(tokens).logits
        return logits.flatten(0, 1)


NETWORKS: dict[str, tuple[Callable[..., nn.Module], Callable[[], tuple[Tensor, Tensor]]]] = {
    "mlp": (of_images("mlp", 1, 28, 28, classes=10), lambda: (torch.randn(512, 1, 28, 28), torch.randint(10, (512,)))),
    "conv": (of_images("conv", 3, 32, 32, classes=2), lambda: (torch.randn(512, 3, 32, 32), torch.randint(2, (512,)))),
    **{
        name: (
            of_images(name, 3, 32, 32, classes=10),
            lambda: (torch.randn(250, 3, 32, 32), torch.randint(10, (250,))),
        )
        for name in ("resnet18", "vit-tiny")
    },
    "gpt2": (GPT2, lambda: (torch.randint(50257, (8, 256)), torch.randint(50257, (2048,)))),
}
