"""Parameters drawn anew, as the network's own modules initialise them."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from supple.population import Population


class FreshParameters:
    """Draws initial parameters for a network again and again, each time with other random numbers.

    Every module that owns parameters draws them with its ``reset_parameters()``, children before parents as when they
    were built. The global random state is left as it was found.

    Args:
        network: a module or a population; a copy of one network is kept.
        names: the parameters that will be asked for, and buffers.

    Raises:
        ValueError: naming the first of them whose module has no ``reset_parameters()``.
    """

    def __init__(self, network: nn.Module | Population, names: Sequence[str]) -> None:
        self._stacked = isinstance(network, Population)
        self._template = network.member(0) if isinstance(network, Population) else copy.deepcopy(network)
        self._names = names
        self._resets = []
        for path, module in reversed(list(self._template.named_modules())):
            reset = getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))
            if reset is not None:
                self._resets.append(reset)
                continue
            for name, _ in module.named_parameters(path, recurse=False):
                if name in names:
                    raise ValueError(
                        f"expected modules that can draw their parameters anew, got {type(module).__name__} for "
                        f"{name!r}: give it a reset_parameters() method, or leave it out with roles={{{name!r}: None}}"
                    )

    def draw(self, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
        """Fresh values by name, stacked over members for a population: one generator each."""
        members = [self._draw_one(generator) for generator in generators]
        if not self._stacked:
            return members[0]
        return {name: torch.stack([member[name] for member in members]) for name in self._names}

    def _draw_one(self, generator: torch.Generator) -> dict[str, Tensor]:
        seed = int(torch.randint(2**62, (), generator=generator))
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            for reset in self._resets:
                reset()
        tensors = dict([*self._template.named_parameters(), *self._template.named_buffers()])
        return {name: tensors[name].detach().clone() for name in self._names}
