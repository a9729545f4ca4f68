"""Running a network on a probe batch without leaving a trace in it."""

import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves, tree_map_only

from supple.network.population import outside_vmap

Inputs = Tensor | tuple[Any, ...] | Mapping[str, Any]
"""What a network is called with: one tensor, several in their order, or several by name. The batch comes first."""
Labels = Any
"""What the loss takes: a tensor, or tensors in tuples, lists and dictionaries. The batch comes first."""
Loss = Callable[[Any, Labels], Tensor]
"""``loss(outputs, labels)`` of a batch, a scalar."""


@dataclass(frozen=True)
class Member:
    """One network, or one member of a population, as a function of its inputs and parameters."""

    module: nn.Module
    """Lends its forward pass; its own tensors are not looked at, and never change."""
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

    def differentiable(self, names: Collection[str]) -> dict[str, Tensor]:
        """The parameters, with those of these names as leaves to differentiate by."""
        return {name: p.detach().requires_grad_(name in names) for name, p in self.parameters.items()}

    @property
    def examples(self) -> int:
        return len(next(leaf for leaf in tree_leaves(self.x) if isinstance(leaf, Tensor)))

    def alone(self, index: int) -> Self:
        """The same with a batch of one example."""
        x, y = tree_map_only(Tensor, lambda tensor: tensor[index : index + 1], (self.x, self.y))
        return replace(self, x=x, y=y)


def copied(x: Inputs) -> Inputs:
    """Inputs that a network may write into."""
    copies: Inputs = tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), x)
    return copies


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, nothing compiled, and a random state that is put back at the end, as are the modes.

    Gradients can be taken, also where this is called under ``torch.inference_mode()``.
    """
    modes = [(part, part.training) for part in module.modules()]
    devices = {p.device.index for p in module.parameters() if p.device.type == "cuda"}
    # Without the compiler, which takes seconds to import, nothing can be compiled.
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    with torch.random.fork_rng(list(devices)), eager, torch.inference_mode(False):
        try:
            for part, _ in modes:
                part.training = False
            yield
        finally:
            for part, mode in modes:
                part.training = mode


@torch.no_grad()
def hidden_activations(member: Member, layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """What each of the layers is given on the probe, ``(rows, units)``, by the layer's name, in the order of calls.

    See :attr:`Inspection.activations`, which is this for every member.
    """
    found: dict[str, list[Tensor]] = {}
    seen: list[Tensor] = []
    x = copied(member.x)
    inputs = {_memory(leaf) for leaf in tree_leaves(x) if isinstance(leaf, Tensor)}
    of_inputs: set[str] = set()
    finished = False

    def before(name: str, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        tensors = (h for h in (*arguments, *named.values()) if isinstance(h, Tensor))
        # One number an example, such as the time that an embedding is given, has no units.
        given = next((h for h in tensors if h.is_floating_point() and outside_vmap(h).ndim > 1), None)
        if not finished:
            of_inputs.add(name)
        if given is None or any(given is other for other in seen):
            return
        seen.append(given)
        h = outside_vmap(given)
        if _memory(h) in inputs:
            return
        if name not in of_inputs:
            units = -1 - len(module.kernel_size) if isinstance(module, _ConvNd) else -1
            found.setdefault(name, []).append(h.movedim(units, -1).flatten(0, -2).clone())

    def after(module: nn.Module, arguments: tuple[Any, ...], outputs: Any) -> None:
        nonlocal finished
        finished = True

    with ExitStack() as hooks:
        for name, module in layers.items():
            hooks.enter_context(module.register_forward_pre_hook(_named(before, name), with_kwargs=True))
            hooks.enter_context(module.register_forward_hook(after))
        member(member.parameters, x)
    return {name: torch.cat(calls) for name, calls in found.items()}


def loss_gradients(member: Member, loss: Loss) -> dict[str, Tensor]:
    """The gradient of the loss on the whole probe, by trained parameter; zero for one that is not used."""
    parameters = member.differentiable(member.trained)
    with torch.enable_grad():
        value = scalar(loss(member(parameters), member.y))
    trained = [parameters[name] for name in member.trained]
    return dict(zip(member.trained, derivatives(value, trained), strict=True))


def scalar(value: Any) -> Tensor:
    """What a loss has returned, if it is one number."""
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"expected a loss that returns one number as a tensor, got {got}: take the mean over the batch"
        )
    return value


def derivatives(value: Tensor, tensors: Sequence[Tensor], *, keep: bool = False) -> list[Tensor]:
    """The gradients of a scalar; zero by what it does not depend on, as by what ran under ``torch.no_grad()``.

    To ``keep`` the graph lets another scalar of it be differentiated afterwards.
    """
    reached = [tensor for tensor in tensors if tensor.requires_grad] if value.requires_grad else []
    gradients = torch.autograd.grad(value, reached, materialize_grads=True, retain_graph=keep) if reached else ()
    dense = (gradient.to_dense() if gradient.is_sparse else gradient for gradient in gradients)
    found = {id(tensor): gradient for tensor, gradient in zip(reached, dense, strict=True)}
    return [found[id(tensor)] if id(tensor) in found else torch.zeros_like(tensor) for tensor in tensors]


def _memory(tensor: Tensor) -> int:
    """Where a tensor lies: the same for the views of one."""
    if tensor.layout != torch.strided:
        return id(tensor)
    return tensor.untyped_storage().data_ptr()


def _named(hook: Callable[..., None], name: str) -> Callable[..., None]:
    return lambda module, arguments, named: hook(name, module, arguments, named)
