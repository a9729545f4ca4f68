"""The training step of a population of networks, with its optimizer and its method."""

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
"""``loss(network, *others)`` of one member returns the loss and its other results."""


class Learner:
    """A population with its method and its optimizer. All training steps are taken here.

    Args:
        population: the networks.
        mitigator: a method that was built on the population.
        step_size: the optimizer's step size.
        optimizer: one of :data:`supple.training.optimizers.OPTIMIZERS`.
        compiled: whether steps run inside ``torch.compile``. Then a step is one function of stacked tensors, for all
            members at once; otherwise autograd runs for one member after the other. Both agree up to rounding.
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
        self._catch_up = torch.compiler.disable(self._act_on_schedule) if compiled else self._act_on_schedule
        self._has_stepped = False
        self.gradients = self._vectorized if compiled else self._one_by_one
        """Returns the gradients of ``loss(network, *others)`` and the loss's other results, both by member."""

    def __call__(self, parameters: Tensors, *inputs: Tensor) -> Any:
        """One member's outputs for ``inputs``, with these parameters; no method observes it."""
        return self._call(parameters, {}, *inputs)

    def learn(self, loss: Loss, *others: Any) -> Any:
        """Take one step of every member on ``loss(network, *others)``; return the loss's other results, by member.

        ``others`` are tensors, or trees of tensors, with the members' dimension first.
        """
        if self.mitigator.scheduled:
            self._catch_up()
        gradients, kept = self.gradients(loss, *others)
        parameters, step_sizes = self._parameters_and_step_sizes()
        state, strength = self.mitigator.state, self.mitigator.strength
        options = {"step_sizes": step_sizes} if self.mitigator.takes_step_sizes else {}
        self._add_gradients(parameters, {name: gradients[name] for name in parameters}, state, strength, **options)
        self.optimizer.step(self.parameters, gradients, self.moments, self.step_size)
        if not self.mitigator.scheduled:
            self._change_parameters(parameters, state, strength, Update(step_sizes, self.moments))
        return kept

    def _act_on_schedule(self) -> None:
        """Change the parameters for the previous step only now: measurements in between see the networks as trained."""
        if self._has_stepped:
            parameters, step_sizes = self._parameters_and_step_sizes()
            update = Update(step_sizes, self.moments)
            self._change_parameters(parameters, self.mitigator.state, self.mitigator.strength, update)
        self._has_stepped = True

    def _parameters_and_step_sizes(self) -> tuple[Tensors, dict[str, float]]:
        parameters = {name: self.parameters[name] for name in self.mitigator.parameters}
        return parameters, dict.fromkeys(parameters, self.step_size)

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
        """Draw new initial values for these parameters, with one generator per member."""
        fresh = self._fresh.draw(generators)
        for name in names:
            self.parameters[name].copy_(fresh[name])

    @cached_property
    def _fresh(self) -> FreshParameters:
        return FreshParameters(self.population, list(self.parameters))

    def clear_moments(self, names: Sequence[str]) -> None:
        """Set the optimizer's state for these parameters to zero."""
        for name in names:
            for moment in self.moments[name].values():
                moment.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, except buffers."""
        state = {"parameters": self.parameters, "moments": self.moments, "mitigator": self.mitigator.state_dict()}
        return state | ({"has_stepped": self._has_stepped} if self.mitigator.scheduled else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Copy what :meth:`state_dict` returned into the existing tensors."""
        copy_into(self.parameters, state["parameters"])
        for name, moments in self.moments.items():
            copy_into(moments, state["moments"][name])
        self.mitigator.load_state_dict(state["mitigator"])
        self._has_stepped = state.get("has_stepped", False)  # the first versions acted at the end of a step

    def _vectorized(self, loss: Loss, *others: Any) -> tuple[Tensors, Any]:
        of_each = vmap(grad(partial(self._loss, loss), has_aux=True), randomness="different")
        gradients, (kept, buffers) = of_each(self.parameters, self.buffers, *others)
        copy_into(self.buffers, buffers)
        return gradients, kept

    # Not nested in _vectorized: the compiler cannot trace how a nested function's annotations are evaluated.
    def _loss(
        self, loss: Loss, parameters: Tensors, buffers: Tensors, *others: Any
    ) -> tuple[Tensor, tuple[Any, Tensors]]:
        """One member's loss, then the loss's other results and the member's updated buffers."""
        buffers = {name: buffer.clone() for name, buffer in buffers.items()}
        value, kept = loss(partial(self._call, parameters, buffers), *others)
        return value, (kept, buffers)

    def _call(self, parameters: Tensors, buffers: Tensors, *inputs: Tensor) -> Any:
        return functional_call(self.population.stacked, (parameters, buffers), inputs)

    def _one_by_one(self, loss: Loss, *others: Any) -> tuple[Tensors, Any]:
        results = []
        for index, (member, parameters) in enumerate(zip(self.members, self._members_parameters, strict=True)):
            value, kept = loss(member, *tree_map(lambda tensor, index=index: tensor[index], others))
            results.append((torch.autograd.grad(value, parameters, materialize_grads=True), kept))
        gradients, kept = tree_map(lambda *tensors: torch.stack(tensors), *results)
        return dict(zip(self.parameters, gradients, strict=True)), kept


def copy_into(mine: Tensors, theirs: Tensors) -> None:
    """Copy each value of ``theirs`` into the tensor of the same name in ``mine``."""
    for name, tensor in mine.items():
        tensor.copy_(theirs[name])
