"""Copies of a network with everything that trains it, to experiment on while the originals stay as they are."""

import copy
import inspect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from supple.mitigators.base import Mitigator
from supple.mitigators.fresh import FreshParameters
from supple.mitigators.hooks import all_on
from supple.network.graph import unwrapped
from supple.network.population import memo_for, seeded_globally


@dataclass
class Trained:
    """A network with its optimizers, schedulers and gradient scaler."""

    network: nn.Module
    optimizers: tuple[Optimizer, ...]
    schedulers: tuple[Any, ...] = ()
    """Torch's schedulers; each takes one step after every training step."""
    scaler: Any = None
    """A ``torch.amp.GradScaler``, or None."""
    several: bool = False
    """Whether the user passed the optimizers in a list or tuple."""

    @property
    def optimizer(self) -> Any:
        """What a user's function gets: the optimizer, or all of them in a tuple."""
        return self.optimizers if self.several else self.optimizers[0]

    def copied(self) -> Self:
        """A copy in training mode, with copies of the methods that are attached to the optimizers.

        Gradients, the optimizers' other hooks and the compiled form of a network are not copied.
        """
        memo = memo_for(self.network)
        copied, _ = copy.deepcopy((self, _methods_on(self.optimizers)), memo)
        for live, mine in zip(self.optimizers, copied.optimizers, strict=True):
            # Torch copies groups and state only. A "step" here is a scheduler's wrapper around the original.
            for name in vars(live).keys() - vars(mine).keys() - {"step"}:
                setattr(mine, name, copy.deepcopy(vars(live)[name], memo))
        if not self.network.training:
            copied.network.train()  # the modes of a network in training are kept: some layers may be frozen
        return copied

    def close(self) -> None:
        """Detach the methods: each forms a cycle with its optimizer, which would keep a dropped copy in memory."""
        for method in _methods_on(self.optimizers):
            method.detach()

    def renew_optimizers(self) -> None:
        """Give the optimizers the state that a new one of the same class and hyperparameters has."""
        for optimizer in self.optimizers:
            optimizer.state = _first_state(optimizer)

    def start_over(self, fresh: nn.Module | None, seed: int) -> None:
        """Take over the values of ``fresh``, or draw new ones, and build the attached methods again on them."""
        values = self._new_values(seed) if fresh is None else fresh.state_dict()
        mine = self.network.state_dict()
        wrong = sorted(
            name for name in mine.keys() | values.keys() if _shape(mine.get(name)) != _shape(values.get(name))
        )
        if fresh is not None and wrong:
            raise ValueError(
                f"expected fresh() to build a network of the same architecture, got {wrong[0]!r} of shape "
                f"{_shape(values.get(wrong[0]))} instead of {_shape(mine.get(wrong[0]))}: build it as the network was"
            )
        self.network.load_state_dict(values, strict=False)
        for method, optimizers in _methods_on(self.optimizers).items():
            method.detach()
            again = method.built_on(unwrapped(method._network))  # its copy of the network, or of a part of it
            for optimizer in optimizers:
                again.attach(optimizer)

    def _new_values(self, seed: int) -> dict[str, Tensor]:
        """New initial values of the trainable parameters, of their modules' buffers, and of parameterless modules.

        An example of the last is a norm without gains. Modules without ``reset_parameters()`` keep their buffers.
        """
        network = self.network
        names = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
        owners = {name.rpartition(".")[0] for name in names}
        owners |= {
            path
            for path, module in network.named_modules()
            if hasattr(module, "reset_parameters") and not [*module.parameters(recurse=False)]
        }
        names += [name for name in dict(network.named_buffers()) if name.rpartition(".")[0] in owners]
        try:
            return FreshParameters(network, names).draw([torch.Generator().manual_seed(seed)])
        except ValueError as error:
            message = str(error).partition(":")[0]
            raise ValueError(f"{message}: pass fresh=, a function that builds a new network") from None


def _shape(tensor: Any) -> tuple[int, ...] | None:
    return tuple(tensor.shape) if isinstance(tensor, Tensor) else None


def _methods_on(optimizers: Sequence[Optimizer]) -> dict[Mitigator, list[Optimizer]]:
    """The attached methods, with the optimizers that each is attached to."""
    methods = defaultdict[Mitigator, list[Optimizer]](list)
    for optimizer in optimizers:
        for hooks in all_on(optimizer):
            methods[hooks.owner].append(optimizer)
    return methods


def _first_state(optimizer: Optimizer) -> Any:
    """The state of a new optimizer: empty for most, filled at construction for some, such as Adagrad's."""
    taken = inspect.signature(type(optimizer)).parameters
    options = {name: value for name, value in optimizer.defaults.items() if name in taken}
    try:
        return type(optimizer)(optimizer.param_groups, **options).state
    except TypeError:  # the class asks for more than its hyperparameters
        return defaultdict(dict)


@contextmanager
def without_gradients(network: nn.Module) -> Iterator[None]:
    """Take the gradients away from the parameters during the block."""
    gradients = {parameter: parameter.grad for parameter in network.parameters()}
    for parameter in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in gradients.items():
            parameter.grad = gradient


@contextmanager
def seeded(seed: int, network: nn.Module, batches: Any) -> Iterator[None]:
    """Seed all generators that training may draw from, and restore them after the block.

    These are torch's, Python's and NumPy's global ones, and those of a ``DataLoader`` and its samplers.
    """
    devices = {device for p in network.parameters() if (device := p.device).type not in ("cpu", "cuda")}
    kind = next(iter(devices)).type if devices else "cuda"
    samplers = (batches, getattr(batches, "sampler", None), getattr(batches, "batch_sampler", None))
    generators = {id(g): g for part in samplers if (g := getattr(part, "generator", None)) is not None}.values()
    states = [generator.get_state() for generator in generators]
    others = torch.random.fork_rng([device.index or 0 for device in devices], device_type=kind)
    with others, seeded_globally(seed):
        for generator in generators:
            generator.manual_seed(seed)
        try:
            yield
        finally:
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)
