"""Many networks of one architecture, stacked on dim 0 and run as one."""

import copy
import random
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

Module = TypeVar("Module", bound=nn.Module)


class Population(nn.Module):
    """Networks of one architecture, one per seed, with every parameter and buffer stacked as ``(members, ...)``.

    Member *i* is initially bit-for-bit identical to ``torch.manual_seed(seeds[i]); make_model()``; Python's and NumPy's
    global generators are seeded too. Any element-wise
    optimizer on ``population.parameters()`` (SGD, Adam, ...) trains each member as it would train this network alone.

    >>> population = Population(lambda: nn.Linear(3, 2), seeds=[0, 1])
    >>> population(torch.zeros(2, 5, 3)).shape
    torch.Size([2, 5, 2])

    Args:
        make_model: builds one network; called once per seed. The global random state does not change.
        seeds: one per member.

    Raises:
        ValueError: if there is no seed, or if the networks do not have the same parameters and shapes.
    """

    def __init__(self, make_model: Callable[[], nn.Module], seeds: Iterable[int]) -> None:
        super().__init__()
        self.seeds = tuple(seeds)
        if not self.seeds:
            raise ValueError("expected at least one seed, got none: give one per member")
        members = []
        for seed in self.seeds:
            with seeded_globally(seed):
                members.append(make_model())
        stacks = _stack([_tensors(member) for member in members])
        self.stacked = _with_tensors(members[0], stacks)
        """One network's modules with the stacked parameters and buffers; it gives the names and roles."""

    def __len__(self) -> int:
        return len(self.seeds)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Run each member on its own slice: inputs ``(members, batch, ...)`` to outputs ``(members, batch, ...)``.

        Give all members the same batch with ``x.expand(len(population), *x.shape)``, which copies nothing. Each member
        has its own dropout masks and its own batch-norm statistics.
        """

        def run(tensors: dict[str, Tensor], *inputs: Tensor) -> Tensor:
            output: Tensor = functional_call(self.stacked, tensors, inputs)
            return output

        outputs: Tensor = vmap(run, randomness="different")(_tensors(self.stacked), *inputs)
        return outputs

    def member(self, index: int, *, share: bool = False) -> nn.Module:
        """Member ``index`` as an ordinary module in the same training mode.

        Its parameters and buffers are copies or, with ``share``, views: then a change of one changes the other, until
        the population is moved to another device or type.
        """
        index = range(len(self))[index]
        slices = {name: tensor.detach()[index] for name, tensor in _tensors(self.stacked).items()}
        if not share:
            slices = {name: tensor.clone() for name, tensor in slices.items()}
        return _with_tensors(copy_of(self.stacked), slices)


def module_of(network: nn.Module | Population) -> nn.Module:
    """The network's modules; those of a population hold the stacked parameters."""
    return network.stacked if isinstance(network, Population) else network


def members_of(network: nn.Module | Population) -> tuple[int, ...]:
    """The dimensions before a parameter's own: the number of members, or none for a single network."""
    return (len(network),) if isinstance(network, Population) else ()


def copy_of(module: Module, *, shared: Iterable[Tensor] = ()) -> Module:
    """A deep copy that shares the given tensors, even of a module that keeps tensors with a graph."""
    return copy.deepcopy(module, memo_for(module) | {id(tensor): tensor for tensor in shared})


def memo_for(module: nn.Module) -> dict[int, Any]:
    """The memo for ``copy.deepcopy`` of something that holds ``module``: its tensors with a graph, without it.

    Torch cannot copy these. A recurrent network may keep its state; ``torch.nn.utils.prune`` and the older
    ``weight_norm`` keep a weight computed from the parameters.
    """
    tensors = (value for value in held_in(module) if isinstance(value, Tensor))
    return {id(tensor): tensor.detach().clone() for tensor in tensors if not tensor.is_leaf}


def held_in(module: nn.Module) -> list[Any]:
    """Every tensor and container in the attributes of the modules, and inside these containers; each once."""
    found: dict[int, Any] = {}
    values: list[Any] = [vars(part) for part in module.modules()]
    while values:
        value = values.pop()
        if isinstance(value, Tensor | dict | list | tuple | set | deque) and id(value) not in found:
            found[id(value)] = value
            if not isinstance(value, Tensor):
                values += value.values() if isinstance(value, dict) else value
    return [*found.values()]


def outside_vmap(tensor: Tensor) -> Tensor:
    """The tensor inside the wrappers of torch.vmap and torch.func.grad, with the mapped dimensions first."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        dim = functorch.maybe_get_bdim(tensor)
        tensor = functorch.get_unwrapped(tensor)
        if dim >= 0:
            tensor = tensor.movedim(dim, 0)
    return tensor.detach()


@contextmanager
def seeded_globally(seed: int) -> Iterator[None]:
    """Seed the global generators of torch, Python and, if it is imported, NumPy; restore them after the block."""
    numpy = sys.modules.get("numpy")
    states = random.getstate(), numpy and numpy.random.get_state()
    with torch.random.fork_rng(range(torch.cuda.device_count()), device_type="cuda"):  # torch.manual_seed seeds all
        torch.manual_seed(seed)
        random.seed(seed)
        if numpy:
            numpy.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(states[0])
            if numpy:
                numpy.random.set_state(states[1])


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; tied ones appear once."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _stack(members: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    shapes = [{name: tensor.shape for name, tensor in member.items()} for member in members]
    for index, other in enumerate(shapes):
        if other != shapes[0]:
            name = min(name for name in other.keys() | shapes[0].keys() if other.get(name) != shapes[0].get(name))
            raise ValueError(
                f"expected members of one shape, got {name!r} as {shapes[0].get(name)} in member 0 and "
                f"{other.get(name)} in member {index}: make_model() must build the same architecture each time"
            )
    return {name: torch.stack([member[name].detach() for member in members]) for name in members[0]}


def _with_tensors(module: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    """Replace every parameter and buffer of ``module`` by name, in place; tied ones stay tied."""
    old = _tensors(module)
    new = {
        id(tensor): nn.Parameter(tensors[name], tensor.requires_grad)
        if isinstance(tensor, nn.Parameter)
        else tensors[name]
        for name, tensor in old.items()
    }
    for owner in module.modules():
        for name, tensor in [
            *owner.named_parameters(recurse=False, remove_duplicate=False),
            *owner.named_buffers(recurse=False, remove_duplicate=False),
        ]:
            setattr(owner, name, new[id(tensor)])
    return module
