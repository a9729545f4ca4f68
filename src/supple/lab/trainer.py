"""The one continual-learning loop: a population learns task after task and is measured at the end of each."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.functional import cross_entropy

from supple.lab.datasets import DATASETS
from supple.lab.methods import METHODS
from supple.lab.models import MODELS
from supple.lab.problems import Run, named
from supple.lab.shifts import SHIFTS, batch_order
from supple.mitigators.base import Update
from supple.optimizers import adam, adam_moments
from supple.population import Population
from supple.roles import find_roles
from supple.runs.store import Row

COMPILE_FROM = 30_000
"""Member-steps in a run from which compiling pays: it costs 10 to 20 s and saves about half a millisecond each."""

Report = Callable[[float], None]
Tensors = dict[str, Tensor]


class Trainer:
    """A population, its method and its optimizer on one problem, with everything they remember.

    The whole step is one function over dictionaries of stacked tensors. It is compiled, and vectorised over the
    members, where the run is long enough to repay that; otherwise each member goes through autograd in its turn. Both
    give the same numbers to rounding.

    Args:
        run: what to train.
        compiled: overrides that choice.
        device: where everything lives.
    """

    def __init__(self, run: Run, *, compiled: bool | None = None, device: str = "cpu") -> None:
        method = named(run.method, METHODS, "method")
        make_model = named(run.model, MODELS, "model")
        self.run, self.device = run, device
        self.data = named(run.dataset, DATASETS, "data set")()
        self.shift = named(run.shift, SHIFTS, "shift")
        self.inputs = self.data.inputs(device)
        self.population = Population(lambda: make_model(self.data, **method.model), run.seeds).to(device)
        self.members = [self.population.member(index, share=True) for index in range(len(run.seeds))]
        self._members_parameters = [list(member.parameters()) for member in self.members]
        self.parameters: Tensors = {name: p.detach() for name, p in self.population.stacked.named_parameters()}
        self.buffers: Tensors = dict(self.population.stacked.named_buffers())
        self.moments = adam_moments(self.parameters)
        self.mitigator = method.mitigator(self.population, run.strength)
        self.mitigator.observe(self.members)
        self.steps_a_task = len(self.data.labels) // run.batch_size * run.epochs
        if compiled is None:
            compiled = self.steps_a_task * run.tasks * len(run.seeds) >= COMPILE_FROM
        if self.mitigator.observes:
            compiled = False  # a compiled step would not see the members' activations
        kernels = self.mitigator.add_gradients, self.mitigator.change_parameters
        if compiled and not self.mitigator.traceable:
            kernels = torch.compiler.disable(kernels[0]), torch.compiler.disable(kernels[1])
        self._add_gradients, self._change_parameters = kernels
        self._gradients = self._vectorised if compiled else self._one_by_one
        self._step = torch.compile(self._advance) if compiled else self._advance

    def learn(self, task: int, report: Report = lambda tasks: None) -> list[Row]:
        """Train on one task to its end and return what was measured there."""
        run, examples = self.run, len(self.data.labels)
        labels = torch.stack([self.shift(self.data, seed, task) for seed in run.seeds]).to(self.device)
        orders = [batch_order(examples, run.batch_size, run.epochs, seed, task) for seed in run.seeds]
        for step, batch in enumerate(torch.stack(orders, dim=1).to(self.device), 1):
            inputs = self.inputs.index_select(0, batch.flatten()).view(*batch.shape, *self.inputs.shape[1:])
            self._step(inputs, labels.gather(1, batch))
            if step % 50 == 0:
                report(task + step / self.steps_a_task)
        return [
            (seed, task, metric, value)
            for metric, values in self._measure(labels).items()
            for seed, value in zip(run.seeds, values.tolist(), strict=True)
        ]

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next task depends on."""
        return {
            "parameters": self.parameters,
            "buffers": self.buffers,
            "moments": self.moments,
            "mitigator": self.mitigator.state_dict(),
            "random": torch.get_rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned, into the same memory."""
        for mine, theirs in [
            (self.parameters, state["parameters"]),
            (self.buffers, state["buffers"]),
            *((self.moments[name], state["moments"][name]) for name in self.moments),
        ]:
            for name, tensor in mine.items():
                tensor.copy_(theirs[name])
        self.mitigator.load_state_dict(state["mitigator"])
        torch.set_rng_state(state["random"])

    def _advance(self, x: Tensor, y: Tensor) -> None:
        """One step of every member, on inputs ``(members, batch, ...)`` and labels ``(members, batch)``."""
        gradients = self._gradients(x, y)
        state, strength, step_size = self.mitigator.state, self.mitigator.strength, self.run.step_size
        parameters = {name: self.parameters[name] for name in self.mitigator.parameters}
        self._add_gradients(parameters, {name: gradients[name] for name in parameters}, state, strength)
        adam(self.parameters, gradients, self.moments, step_size)
        update = Update(dict.fromkeys(parameters, step_size), self.moments)
        self._change_parameters(parameters, state, strength, update)

    def _vectorised(self, x: Tensor, y: Tensor) -> Tensors:
        def loss(parameters: Tensors, buffers: Tensors, x: Tensor, y: Tensor) -> tuple[Tensor, Tensors]:
            buffers = {name: buffer.clone() for name, buffer in buffers.items()}
            outputs = functional_call(self.population.stacked, (parameters, buffers), (x,))
            return cross_entropy(outputs, y), buffers

        per_member = vmap(grad_and_value(loss, has_aux=True), randomness="different")
        gradients, (_, buffers) = per_member(self.parameters, self.buffers, x, y)
        for name, buffer in buffers.items():
            self.buffers[name].copy_(buffer)
        found: Tensors = gradients
        return found

    def _one_by_one(self, x: Tensor, y: Tensor) -> Tensors:
        found = [
            torch.autograd.grad(cross_entropy(member(inputs), labels), parameters)
            for member, parameters, inputs, labels in zip(self.members, self._members_parameters, x, y, strict=True)
        ]
        stacked = (torch.stack(each) if len(each) > 1 else each[0][None] for each in zip(*found, strict=True))
        return dict(zip(self.parameters, stacked, strict=True))

    @torch.no_grad()
    def _measure(self, labels: Tensor) -> Tensors:
        """By metric, one value a member, on all examples of the task."""
        accuracy, loss = [], []
        for member, member_labels in zip(self.members, labels, strict=True):
            member.eval()
            outputs = torch.cat([member(chunk) for chunk in torch.split(self.inputs, 2048)])
            member.train()
            accuracy.append((outputs.argmax(-1) == member_labels).float().mean())
            loss.append(cross_entropy(outputs, member_labels))
        roles = find_roles(self.population)
        norms = [
            role.spectral_norms(self.parameters[name]).view(len(self.members), -1)
            for name, role in roles.items()
            if role.kind == "matrix"
        ]
        squares = [roles[name].vector(parameter).square().sum(-1) for name, parameter in self.parameters.items()]
        return {
            "train_accuracy": torch.stack(accuracy),
            "train_loss": torch.stack(loss),
            "spectral_norm": torch.cat(norms, -1).mean(-1),
            "weight_norm": torch.stack(squares).sum(0).sqrt(),
        }


def train(run: Run, report: Report = lambda tasks: None, *, root: Path, pieces: int = 1) -> bool:
    """Train a run in its folder under ``root``, from the last finished task on.

    Args:
        run: what to train.
        report: told every now and then how many tasks, with fractions, are done.
        root: the folder of all runs.
        pieces: how many calls it takes to the end; for sharing workers between runs.

    Returns:
        Whether tasks are left.
    """
    folder = run.folder(root)
    # Weights driven towards zero become subnormal numbers, which make a step ten times slower: they count as zero.
    checkpoint = folder.begin(flush_denormal=torch.set_flush_denormal(True))
    torch.manual_seed(run.seeds[0])
    trainer = Trainer(run)
    finished, rows = 0, []
    if checkpoint:
        finished, rows = checkpoint["finished"], [tuple(row) for row in checkpoint["rows"]]
        trainer.load_state_dict(checkpoint["trainer"])
    end = min(run.tasks, finished + math.ceil(run.tasks / pieces))
    for task in range(finished, end):
        rows += trainer.learn(task, report)
        folder.save({"finished": task + 1, "trainer": trainer.state_dict()}, rows)
        report(task + 1)
    return end < run.tasks
