"""The training step: a population of networks, the optimizer and the method that train them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.utils._pytree import tree_map

from supple.mitigators.base import Mitigator
from supple.mitigators.fresh import FreshParameters
from supple.mitigators.kernels import Update
from supple.mitigators.states import Tensors
from supple.network.population import Population
from supple.training.optimizers import OPTIMIZERS, Optimizer

Loss = Callable[..., tuple[Tensor, Any]]
"""From one member's network and whatever else to a loss, and what is to be kept beside it."""


class Learner:
    """A population with its method and its optimizer: the one place where a training step is taken.

    Args:
        population: the networks.
        mitigator: a method that was built on the population.
        step_size: the optimizer's.
        optimizer: one of :data:`supple.training.optimizers.OPTIMIZERS`.
        compiled: whether steps run inside ``torch.compile``: then a step is one function of stacked tensors, for all
            members at once; otherwise each member goes through autograd in its turn. Both give the same to rounding.
    """

    def __init__(
        self,
        population: Population,
        mitigator: Mitigator,
        step_size: float,
        *,
        optimizer: Optimizer = OPTIMIZERS["adam"],
        compiled: bool = False,
    ) -> None:
        self.population, self.mitigator, self.step_size, self.optimizer = population, mitigator, step_size, optimizer
        self.parameters: Tensors = {name: p.detach() for name, p in population.stacked.named_parameters()}
        self.buffers: Tensors = dict(population.stacked.named_buffers())
        self.moments = optimizer.moments(self.parameters)
        self.members = [population.member(index, share=True) for index in range(len(population))]
        self._members_parameters = [list(member.parameters()) for member in self.members]
        mitigator.observe(self.members)
        kernels = mitigator.add_gradients, mitigator.change_parameters
        if compiled and not mitigator.traceable:
            kernels = torch.compiler.disable(kernels[0]), torch.compiler.disable(kernels[1])
        self._add_gradients, self._change_parameters = kernels
        self.gradients = self._vectorized if compiled else self._one_by_one
        """Of ``loss(network, *others)`` for every member, and what the loss keeps, by member."""

    def __call__(self, parameters: Tensors, *inputs: Tensor) -> Any:
        """What one member's network makes of ``inputs`` with these parameters; no method observes it."""
        return self._call(parameters, {}, *inputs)

    def learn(self, loss: Loss, *others: Any) -> Any:
        """One step of every member down the gradient of ``loss(network, *others)``; what it keeps, by member.

        The others are tensors, or trees of tensors, with the members first.
        """
        gradients, kept = self.gradients(loss, *others)
        parameters = {name: self.parameters[name] for name in self.mitigator.parameters}
        step_sizes = dict.fromkeys(parameters, self.step_size)
        state, strength = self.mitigator.state, self.mitigator.strength
        options = {"step_sizes": step_sizes} if self.mitigator.takes_step_sizes else {}
        self._add_gradients(parameters, {name: gradients[name] for name in parameters}, state, strength, **options)
        self.optimizer.step(self.parameters, gradients, self.moments, self.step_size)
        self._change_parameters(parameters, state, strength, Update(step_sizes, self.moments))
        return kept

    @contextmanager
    def unobserved(self) -> Iterator[None]:
        """Hide the members' forward passes from methods that observe activations, while the block runs."""
        for member in self.members:
            member.eval()
        try:
            yield
        finally:
            for member in self.members:
                member.train()

    def reinitialize(self, names: Sequence[str], generators: Sequence[torch.Generator]) -> None:
        """Draw new initial values for these parameters; one generator a member."""
        fresh = self._fresh.draw(generators)
        for name in names:
            self.parameters[name].copy_(fresh[name])

    @cached_property
    def _fresh(self) -> FreshParameters:
        return FreshParameters(self.population, list(self.parameters))

    def clear_moments(self, names: Sequence[str]) -> None:
        """Reset what the optimizer remembers of these parameters."""
        for name in names:
            for moment in self.moments[name].values():
                moment.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, besides buffers."""
        return {"parameters": self.parameters, "moments": self.moments, "mitigator": self.mitigator.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned, into the same memory."""
        copy_into(self.parameters, state["parameters"])
        for name, moments in self.moments.items():
            copy_into(moments, state["moments"][name])
        self.mitigator.load_state_dict(state["mitigator"])

    def _vectorized(self, loss: Loss, *others: Any) -> tuple[Tensors, Any]:
        of_each = vmap(grad(partial(self._loss, loss), has_aux=True), randomness="different")
        gradients, (kept, buffers) = of_each(self.parameters, self.buffers, *others)
        copy_into(self.buffers, buffers)
        return gradients, kept

    # Not within _vectorized: the annotations of a nested function are evaluated where the compiler can't follow.
    def _loss(
        self, loss: Loss, parameters: Tensors, buffers: Tensors, *others: Any
    ) -> tuple[Tensor, tuple[Any, Tensors]]:
        """One member's loss; what it keeps, and the member's buffers afterwards."""
        buffers = {name: buffer.clone() for name, buffer in buffers.items()}
        value, kept = loss(partial(self._call, parameters, buffers), *others)
        return value, (kept, buffers)

    def _call(self, parameters: Tensors, buffers: Tensors, *inputs: Tensor) -> Any:
        return functional_call(self.population.stacked, (parameters, buffers), inputs)

    def _one_by_one(self, loss: Loss, *others: Any) -> tuple[Tensors, Any]:
        found = []
        for index, (member, parameters) in enumerate(zip(self.members, self._members_parameters, strict=True)):
            value, kept = loss(member, *tree_map(lambda tensor, index=index: tensor[index], others))
            found.append((torch.autograd.grad(value, parameters), kept))
        gradients, kept = tree_map(lambda *tensors: torch.stack(tensors), *found)
        return dict(zip(self.parameters, gradients, strict=True)), kept


def copy_into(mine: Tensors, theirs: Tensors) -> None:
    """Each value, into the memory that is there."""
    for name, tensor in mine.items():
        tensor.copy_(theirs[name])
