"""Runs a network on a probe batch without changing it."""

import copy
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves, tree_map_only

from supple.network.population import held_in, outside_vmap

Inputs = Tensor | tuple[Any, ...] | Mapping[str, Any]
"""A network's arguments: one tensor, several in order, or several by name. The batch dimension is first."""
Labels = Any
"""What the loss takes: a tensor, or tensors in tuples, lists and dictionaries. The batch dimension is first."""
Loss = Callable[[Any, Labels], Tensor]
"""``loss(outputs, labels)`` of a batch, a scalar."""
_CONTAINERS = (dict, OrderedDict, defaultdict, list, set, deque)
"""Not their subclasses, which may refuse to be changed."""


@dataclass(frozen=True)
class Member:
    """One network, or one member of a population, as a function of its inputs and parameters."""

    module: nn.Module
    """The module whose forward pass is used; its own tensors are neither read nor changed."""
    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]
    trained: tuple[str, ...]
    """The names of the parameters that are trained."""
    x: Inputs
    """The probe."""
    y: Labels

    def __call__(self, parameters: Mapping[str, Tensor], x: Inputs | None = None) -> Any:
        """The outputs on a copy of the probe, or on ``x``. No call changes the buffers."""
        x = copied(self.x) if x is None else x
        buffers = {name: buffer.clone() for name, buffer in self.buffers.items()}
        arguments, named = ((), dict(x)) if isinstance(x, Mapping) else (x if isinstance(x, tuple) else (x,), {})
        return functional_call(self.module, {**parameters, **buffers}, arguments, named)

    def differentiable(self) -> dict[str, Tensor]:
        """All parameters; the trained ones are leaves that require gradients."""
        return {name: p.detach().requires_grad_(name in self.trained) for name, p in self.parameters.items()}

    @property
    def examples(self) -> int:
        return len(next(leaf for leaf in tree_leaves(self.x) if isinstance(leaf, Tensor)))

    def with_one_example(self, index: int) -> Self:
        """The same member with a batch of one example."""
        x, y = tree_map_only(Tensor, lambda tensor: tensor[index : index + 1], (self.x, self.y))
        return replace(self, x=x, y=y)


def copied(x: Inputs) -> Inputs:
    """A copy of the inputs that a network may write into."""
    copies: Inputs = tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), x)
    return copies


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Run the block in evaluation mode and uncompiled; at the end restore modes, random state and attributes.

    Attributes, such as a recurrent state or a count of calls, are restored also where they hold tensors, lists,
    dictionaries, sets and deques that the block changes in place; other objects are not looked into. Gradients can be
    computed, even under ``torch.inference_mode()``.
    """
    modes = [(part, part.training) for part in module.modules()]
    put_back = _keep_attributes(module)
    devices = {p.device.index for p in module.parameters() if p.device.type == "cuda"}
    # If the compiler was not imported (this takes seconds), nothing is compiled.
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    # cuDNN's recurrent layers have no backward pass in evaluation mode; torch's own have.
    recurrent = any(isinstance(part, nn.RNNBase) for part in module.modules())
    plain = torch.backends.cudnn.flags(enabled=False) if recurrent and devices else nullcontext()
    is_fast = torch.backends.mha.get_fastpath_enabled()
    with torch.random.fork_rng(list(devices)), eager, plain, torch.inference_mode(False):
        try:
            torch.backends.mha.set_fastpath_enabled(False)  # it turns a padded batch into nested tensors
            for part, _ in modes:
                part.training = False
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(is_fast)
            for part, mode in modes:
                part.training = mode
            put_back()


@torch.no_grad()
def hidden_activations(member: Member, layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Each layer's input on the probe, ``(rows, units)``, by the layer's name, in the order of calls.

    :attr:`Inspection.activations` gives the details; it calls this for every member.
    """
    activations: dict[str, list[Tensor]] = {}
    seen: list[Tensor] = []
    x = copied(member.x)
    inputs = {_memory(leaf) for leaf in tree_leaves(x) if isinstance(leaf, Tensor)}
    of_inputs: set[str] = set()
    given_first: list[Tensor] = []
    finished = False

    def before(name: str, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        tensors = (h for h in (*arguments, *named.values()) if isinstance(h, Tensor))
        # An input with one number per example, such as a time for an embedding, has no units.
        given = next((h for h in tensors if h.is_floating_point() and outside_vmap(h).ndim > 1), None)
        if not finished:
            of_inputs.add(name)
        if given is None or any(given is other for other in seen):
            return
        seen.append(given)
        h = outside_vmap(given)
        if name in of_inputs:
            given_first.append(h)
        is_input = _memory(h) in inputs or any(h.shape == first.shape and h.equal(first) for first in given_first)
        if not is_input:
            units = -1 - len(module.kernel_size) if isinstance(module, _ConvNd) else -1
            activations.setdefault(name, []).append(h.movedim(units, -1).flatten(0, -2).clone())

    def after(module: nn.Module, arguments: tuple[Any, ...], outputs: Any) -> None:
        nonlocal finished
        finished = True

    with ExitStack() as hooks:
        for name, module in layers.items():
            hooks.enter_context(module.register_forward_pre_hook(partial(before, name), with_kwargs=True))
            hooks.enter_context(module.register_forward_hook(after))
        member(member.parameters, x)
    return {name: torch.cat(calls) for name, calls in activations.items()}


def loss_gradients(member: Member, loss: Loss) -> dict[str, Tensor]:
    """The gradient of the loss on the whole probe, by trained parameter; zero for unused parameters."""
    parameters = member.differentiable()
    with torch.enable_grad():
        value = scalar(loss(member(parameters), member.y))
    trained = [parameters[name] for name in member.trained]
    return dict(zip(member.trained, derivatives(value, trained), strict=True))


def scalar(value: Any) -> Tensor:
    """The loss's value; raises an error if it is not one number."""
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"expected a loss that returns one number as a tensor, got {got}: take the mean over the batch"
        )
    return value


def derivatives(value: Tensor, tensors: Sequence[Tensor], *, keep: bool = False) -> list[Tensor]:
    """The gradients of a scalar; zero for tensors that it does not depend on, also if due to ``torch.no_grad()``.

    With ``keep`` the graph is kept, so that another scalar of the graph can be differentiated afterwards.
    """
    reached = [tensor for tensor in tensors if tensor.requires_grad] if value.requires_grad else []
    gradients = torch.autograd.grad(value, reached, materialize_grads=True, retain_graph=keep) if reached else ()
    dense = (gradient.to_dense() if gradient.is_sparse else gradient for gradient in gradients)
    by_id = {id(tensor): gradient for tensor, gradient in zip(reached, dense, strict=True)}
    return [by_id[id(tensor)] if id(tensor) in by_id else torch.zeros_like(tensor) for tensor in tensors]


def _keep_attributes(module: nn.Module) -> Callable[[], None]:
    """Copy what the modules keep in attributes; the function that puts it back.

    Parameters and buffers are not copied: a forward pass of a :class:`Member` gets others.
    """
    held, own = held_in(module), {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    containers = [(value, copy.copy(value)) for value in held if type(value) in _CONTAINERS]
    others = (value for value in held if isinstance(value, Tensor) and id(value) not in own)
    # The block can write neither to tensors of inference mode, which have no version, nor to those of a past vmap.
    tensors = [
        (tensor, tensor._version, tensor.detach().clone())
        for tensor in others
        if not (tensor.is_inference() or torch._C._functorch.is_functorch_wrapped_tensor(tensor))
    ]

    def put_back() -> None:
        for container, before in containers:
            container.clear()
            container.update(before) if isinstance(container, dict | set) else container.extend(before)
        for tensor, version, values in tensors:
            if tensor._version != version:
                tensor.data.copy_(values)

    return put_back


def _memory(tensor: Tensor) -> int:
    """The address of a tensor's memory, the same for all its views."""
    if tensor.layout != torch.strided:
        return id(tensor)
    return tensor.untyped_storage().data_ptr()
