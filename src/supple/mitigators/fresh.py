"""New initial parameters, from the initialization of the network's own modules."""

from collections.abc import Callable, Sequence
from types import FunctionType

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from supple.kernels.power_iteration import working_dtype
from supple.network.population import Population, copy_of, seeded_globally

_UNIFORM = (nn.Linear.reset_parameters, _ConvNd.reset_parameters)
"""Functions that draw weight and bias uniformly in ±1/√n, where n is the number of entries of weight[0]."""


class FreshParameters:
    """Draws new initial parameters for a network, with other random numbers in each call.

    Every module that owns parameters draws them with its ``reset_parameters()``, children before parents, as at
    construction. The global random states (torch's, Python's and NumPy's) do not change.

    Args:
        network: a module or a population; a copy of one network is kept.
        names: the parameters and buffers to draw.
        coarse: on a CPU, draw those of linear layers and convolutions from 16 random bits each instead of torch's 24:
            65,536 equally spaced values, in a third of the time.

    Raises:
        ValueError: if a parameter is tied between modules that draw it differently, a module has no
            ``reset_parameters()``, or its ``reset_parameters()`` does not write a parameter
            (as with ``torch.nn.utils.spectral_norm``); the message names the first one. Also for models of
            ``transformers``, whose modules have other initial values than by themselves.
    """

    def __init__(self, network: nn.Module | Population, names: Sequence[str], *, coarse: bool = False) -> None:
        self._stacked = isinstance(network, Population)
        self._template = network.member(0) if isinstance(network, Population) else copy_of(network)
        self._names = names
        self._resets = []
        self._bounds: dict[str, float] = {}
        self._check_initializers()
        self._check_tied()
        # A module that has children may also write to their parameters.
        coarse = coarse and not any(reset_of(module) and [*module.children()] for module in self._template.modules())
        for path, module in reversed(list(self._template.named_modules())):
            if coarse and draws_uniformly(module) and module.weight.numel():
                held = {name: p for name, p in module.named_parameters(path, recurse=False) if p.numel()}
                usual = {f"{path}.{name}" if path else name for name in ("weight", "bias")}
                if held.keys() <= usual & set(names) and all(p.is_cpu for p in held.values()):
                    self._bounds |= dict.fromkeys(held, module.weight[0].numel() ** -0.5)
                    continue
            reset = reset_of(module)
            if reset is not None:
                self._resets.append(reset)
                continue
            for name, _ in module.named_parameters(path, recurse=False):
                if name in names:
                    raise ValueError(
                        f"expected a module with a reset_parameters() method, got {type(module).__name__} without one "
                        f"for {name!r}: add the method, or leave the parameter out with roles={{{name!r}: None}}"
                    )

        self._check_written()

    def draw(self, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
        """New values by name, stacked over members for a population, with one generator per member."""
        members = [self._draw_one(generator) for generator in generators]
        if not self._stacked:
            return members[0]
        return {name: torch.stack([member[name] for member in members]) for name in self._names}

    def _check_initializers(self) -> None:
        """Check that no module inside is initialized by another one, as in ``transformers``."""
        for path, whole in self._template.named_modules():
            factors = [name for name in self._names if name.startswith(f"{path}.lora_" if path else "lora_")]
            if factors and hasattr(whole, "reset_lora_parameters"):
                raise ValueError(
                    f"expected modules that initialize themselves, got the factors in {path!r}, of which peft sets one "
                    "to zero: leave them out with roles"
                )
            parts = [part for part in whole.modules() if [*part.parameters(recurse=False)]]
            if hasattr(whole, "_init_weights") and not all("reset_parameters" in vars(part) for part in parts):
                kind = type(whole).__name__
                raise ValueError(
                    f"expected modules that initialize themselves, got those of a {kind}, which initializes them in "
                    "its own way: first set, for each module of network.modules(), module.reset_parameters = "
                    f"functools.partial(network._init_weights, module), where network is the {kind}"
                )

    def _check_tied(self) -> None:
        """Check that tied parameters are drawn in one way: an embedding draws far larger values than a linear layer."""
        drawn = {parameter for name, parameter in self._template.named_parameters() if name in self._names}
        owners: dict[Tensor, nn.Module] = {}
        for module in self._template.modules():
            for name, parameter in module.named_parameters(recurse=False):
                first = owners.setdefault(parameter, module)
                kinds = {getattr(reset_of(one), "__func__", None) for one in (first, module)}  # None: your own
                if parameter in drawn and len(kinds - {None}) > 1:
                    raise ValueError(
                        f"expected one initialization for each parameter, got those of {type(first).__name__} and "
                        f"{type(module).__name__}, which share {name!r}: give both modules the same reset_parameters, "
                        "as in head.reset_parameters = embedding.reset_parameters, or leave it out with roles"
                    )

    @torch.no_grad()
    def _check_written(self) -> None:
        """Check that the modules write all parameters: fill them with values that no module draws, then reset."""
        parameters = dict(self._template.named_parameters())
        marked = {
            name: (parameters[name], parameters[name].clone())
            for name in self._names
            if name in parameters and name not in self._bounds and parameters[name].numel()
        }
        for parameter, _ in marked.values():
            parameter.fill_(torch.nan)
        try:
            self._reset(0)
            kept = [name for name, (parameter, _) in marked.items() if parameter.isnan().all()]
        finally:
            for parameter, before in marked.values():
                parameter.copy_(before)
        if kept:
            owner = type(self._template.get_submodule(kept[0].rpartition(".")[0])).__name__
            raise ValueError(
                f"expected a reset_parameters() that writes all parameters of its module, got that of {owner}, which "
                f"does not write {kept[0]!r}: write it too, or leave the parameter out with roles={{{kept[0]!r}: None}}"
            )

    def _reset(self, seed: int) -> None:
        with seeded_globally(seed):
            for reset in self._resets:
                reset()

    def _draw_one(self, generator: torch.Generator) -> dict[str, Tensor]:
        tensors = dict([*self._template.named_parameters(), *self._template.named_buffers()])
        if self._resets:
            self._reset(int(torch.randint(2**62, (), generator=generator, device="cpu")))
        return {
            name: _coarsely_uniform(tensors[name], self._bounds[name], generator)
            if name in self._bounds
            else tensors[name].detach().clone()
            for name in self._names
        }


def reset_of(module: nn.Module) -> Callable[[], object] | None:
    """The function that draws a module's own parameters, if it has one.

    Raises:
        ValueError: if it is a function that was set on the module: a copy's would still write to the original module.
    """
    reset = getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))
    if isinstance(reset, FunctionType):
        raise ValueError(
            f"expected a reset_parameters() that belongs to its {type(module).__name__}, got a function without "
            "arguments, which would overwrite the network in use: set functools.partial(function, module) instead, or "
            "write a method of the module's class"
        )
    return reset


def draws_uniformly(module: nn.Module) -> bool:
    """Whether it is one of torch's own linear layers or convolutions, without an initialization given to it later."""
    reset = reset_of(module)
    return getattr(reset, "__func__", reset) in _UNIFORM


def _coarsely_uniform(like: Tensor, bound: float, generator: torch.Generator) -> Tensor:
    """Random midpoints of 65,536 equal parts of [−bound, bound]; each 64-bit random number gives four."""
    words = torch.empty(-(-like.numel() // 4), dtype=torch.int64, device="cpu")
    words.random_(-(2**63), None, generator=generator)
    numbers = words.view(torch.int16)[: like.numel()].view(like.shape).to(working_dtype(like))
    return numbers.add_(0.5).mul_(bound / 2**15).to(like.dtype)
