"""A network that learns: every member's parameters, the optimizer and the method that train them."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils._pytree import tree_map

from supple.mitigators.base import Mitigator
from supple.mitigators.fresh import FreshParameters
from supple.mitigators.kernels import Update
from supple.mitigators.states import Tensors
from supple.population import Population
from supple.training.optimizers import adam, adam_moments

Loss = Callable[..., tuple[Tensor, Any]]
"""From one member's network and whatever else to a loss, and what is to be kept beside it."""


class Learner:
    """One network of every member, with its optimizer and its method.

    Args:
        make_network: builds one member's network.
        seeds: one a member.
        method: puts a mitigator on the population.
        step_size: Adam's.
        compiled: whether :meth:`learn` runs inside ``torch.compile``: then it is one function of stacked tensors, for
            all members at once; otherwise each goes through autograd in its turn. Both give the same to rounding.
        device: where the parameters live.
    """

    def __init__(
        self,
        make_network: Callable[[], nn.Module],
        seeds: Sequence[int],
        method: Callable[[Population], Mitigator],
        step_size: float,
        *,
        compiled: bool = False,
        device: str = "cpu",
    ) -> None:
        self.population = Population(make_network, seeds).to(device)
        self.parameters: Tensors = {name: p.detach() for name, p in self.population.stacked.named_parameters()}
        self.moments = adam_moments(self.parameters)
        self.mitigator = method(self.population)
        self._members = [self.population.member(index, share=True) for index in range(len(seeds))]
        self._members_parameters = [list(member.parameters()) for member in self._members]
        self.mitigator.observe(self._members)
        self.step_size = step_size
        self._fresh = FreshParameters(self.population, list(self.parameters))
        self._quiet = copy.deepcopy(self.population.stacked)  # here no method listens to what units say
        kernels = self.mitigator.add_gradients, self.mitigator.change_parameters
        if compiled and not self.mitigator.traceable:
            kernels = torch.compiler.disable(kernels[0]), torch.compiler.disable(kernels[1])
        self._add_gradients, self._change_parameters = kernels
        self.gradient = self._vectorised if compiled else self._one_by_one
        """Of ``loss(network, *others)`` for every member, and what it keeps, by member."""

    def __call__(self, parameters: Tensors, *inputs: Tensor) -> Any:
        """What one member's network makes of ``inputs``."""
        return functional_call(self._quiet, parameters, inputs)

    def learn(self, loss: Loss, *others: Any) -> Any:
        """One step of every member down the gradient of ``loss(network, *others)``; what it keeps, by member.

        The others are tensors, or trees of tensors, with the members first.
        """
        gradients, kept = self.gradient(loss, *others)
        state, strength = self.mitigator.state, self.mitigator.strength
        parameters = {name: self.parameters[name] for name in self.mitigator.parameters}
        step_sizes = dict.fromkeys(parameters, self.step_size)
        options = {"step_sizes": step_sizes} if self.mitigator.takes_step_sizes else {}
        self._add_gradients(parameters, {name: gradients[name] for name in parameters}, state, strength, **options)
        adam(self.parameters, gradients, self.moments, self.step_size)
        update = Update(step_sizes, self.moments)
        self._change_parameters(parameters, state, strength, update)
        return kept

    @contextmanager
    def unheard(self) -> Iterator[None]:
        """What the members do while the block runs is no training: no method that judges their units hears it."""
        for member in self._members:
            member.eval()
        try:
            yield
        finally:
            for member in self._members:
                member.train()

    def draw_anew(self, names: Sequence[str], generators: Sequence[torch.Generator]) -> None:
        """Initial values for these parameters; one generator a member."""
        fresh = self._fresh.draw(generators)
        for name in names:
            self.parameters[name].copy_(fresh[name])

    def forget(self, names: Sequence[str]) -> None:
        """The optimizer's memory of these parameters is as before the first step."""
        for name in names:
            for moment in self.moments[name].values():
                moment.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {"parameters": self.parameters, "moments": self.moments, "mitigator": self.mitigator.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned, into the same memory."""
        copy_into(self.parameters, state["parameters"])
        for name, moments in self.moments.items():
            copy_into(moments, state["moments"][name])
        self.mitigator.load_state_dict(state["mitigator"])

    def _vectorised(self, loss: Loss, *others: Any) -> tuple[Tensors, Any]:
        def of_one(parameters: Tensors, *others: Any) -> tuple[Tensor, Any]:
            return loss(partial(self, parameters), *others)

        found: tuple[Tensors, Any] = vmap(grad(of_one, has_aux=True))(self.parameters, *others)
        return found

    def _one_by_one(self, loss: Loss, *others: Any) -> tuple[Tensors, Any]:
        found = []
        for index, (member, parameters) in enumerate(zip(self._members, self._members_parameters, strict=True)):
            value, kept = loss(member, *tree_map(lambda tensor, index=index: tensor[index], others))
            found.append((torch.autograd.grad(value, parameters), kept))
        gradients, kept = tree_map(lambda *tensors: torch.stack(tensors), *found)
        return dict(zip(self.parameters, gradients, strict=True)), kept


def copy_into(mine: Tensors, theirs: Tensors) -> None:
    """Each value, into the memory that is there."""
    for name, tensor in mine.items():
        tensor.copy_(theirs[name])
