"""The continual-learning loop: a population learns task after task and is measured at the end of each task."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import polars as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from supple.errors import known
from supple.lab import datasets, models, shifts
from supple.lab.measure import Probe, evaluate, is_right
from supple.lab.operations import operations
from supple.lab.run import Run
from supple.lab.shifts import Task, batch_order, seen
from supple.network.population import Population
from supple.runs.resume import ChangedDataError, Report, work_on
from supple.runs.store import SCHEMA
from supple.training import methods
from supple.training.compiled_code import can_compile
from supple.training.learner import Learner, copy_into
from supple.training.optimizers import OPTIMIZERS
from supple.training.precision import matmul_precision

COMPILE_FROM = 30_000
"""Compiling pays from this many member-steps in a run: it costs 10 to 20 s and saves about 0.5 ms per step."""

COMPILE_TO = 2e9
"""On a CPU, compiling pays up to this many operations in a member's step: it pays at 1.2e9 (4x256 MLP, batch 512); at
5.6e10 (ResNet-18, batch 250) it took minutes and made the step slower. Convolutions are not compiled there: compiled
members are vectorized, which allows no channels-last images, with which a step of ``conv`` takes three quarters of
the time."""


class Trainer:
    """A population, its method and its optimizer on one problem, with all their state.

    The whole step is one function over dictionaries of stacked tensors. In long runs, where that pays, it is compiled
    and vectorized over the members; otherwise autograd runs for one member after the other. Both give the same numbers
    up to rounding.

    Args:
        run: what to train.
        compiled: whether the step is compiled; chosen as described when left out.
        device: of all tensors; when left out, a GPU if there is one.
    """

    def __init__(self, run: Run, *, compiled: bool | None = None, device: str | None = None) -> None:
        method = methods.find(run.method)
        make_model, self.shift = models.find(run.model), shifts.find(run.shift)
        self.run, self.device = run, device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.data = datasets.load(run.dataset).thinned(run.examples).to(self.device)
        images = self.data.train.images
        # In pieces: a sum in another type copies all that it adds.
        self._fingerprint = [len(images), sum(part.sum(dtype=torch.float64).item() for part in images.split(1024))]
        labels = self.data.train.labels
        self._fingerprint.append((labels * torch.arange(1, len(labels) + 1, device=labels.device)).sum().item())
        if run.tasks > self.shift.tasks(self.data):
            raise ValueError(
                f"expected at most {self.shift.tasks(self.data)} tasks of {run.shift} on {run.dataset}, got "
                f"{run.tasks}: choose fewer"
            )
        shown = dataclasses.replace(self.data, classes=self.shift.outputs(self.data))
        self._classes = shown.classes
        self.make_network = lambda: models.check_network(make_model(shown, **method.network), run.model)
        """Builds a new network; torch's global generator determines its weights."""
        self.population = Population(self.make_network, run.seeds).to(self.device)
        self.probe = Probe(self.population, self.data, shown.classes, run.diagnostics)
        same = len(set(run.strengths)) == 1
        strength = run.strengths[0] if same else torch.tensor(run.strengths, device=self.device)
        mitigator = method.on(self.population, strength, **json.loads(run.options))
        convolves = any(isinstance(module, nn.Conv2d) for module in self.population.stacked.modules())
        if mitigator.observes:
            compiled = False  # the method can't observe the members' activations in a compiled step
        elif compiled is None:
            compiled = self._should_compile(convolves)
        if compiled and run.autocast:
            raise ValueError(
                "expected steps that are not compiled with autocast, got compiled=True: compiled members are "
                "vectorized, which allows no channels-last images, so leave one of the two out"
            )
        optimizer = OPTIMIZERS[known(run.optimizer, OPTIMIZERS, "optimizer")]
        self.learner = Learner(self.population, mitigator, run.step_size, optimizer=optimizer, compiled=compiled)
        if compiled:
            torch.compiler.reset()  # otherwise it stops compiling this function after a few trainers in a process
        self._step = torch.compile(self._advance) if compiled else self._advance
        self._channels_last = bool(run.autocast) or (convolves and not compiled and self.device == "cpu")

    def learn(self, task: int, report: Report = lambda tasks: None) -> pl.DataFrame:
        """Train on one task; return the measurements at its end, in the store's schema."""
        tasks, labels, batches, pixels = self._begin(task)
        if task and self.learner.mitigator.acts_at_task_start:
            self.learner.mitigator.start_task()
        if self.learner.optimizer.restarts:
            self.learner.clear_moments(list(self.learner.parameters))
        correct = torch.zeros(len(self.run.seeds), dtype=torch.int64, device=self.device)
        with matmul_precision(self.run.matmul_precision):
            for step, batch in enumerate(batches, 1):
                correct += self._step(self._inputs(batch, pixels), labels.gather(1, batch))
                if step % 50 == 0 and step < len(batches):  # the end of a task is reported after it is saved
                    report(task + step / len(batches))
        measured = evaluate(self.learner.members, self.data, tasks)
        measured["online_accuracy"] = correct / (len(batches) * self.run.batch_size)
        measured |= self.probe.measure()
        return pl.DataFrame(
            [
                (member, task, metric, value)
                for metric, values in measured.items()
                for member, value in enumerate(values.tolist())
            ],
            schema=SCHEMA,
            orient="row",
        )

    def steps(self, task: int) -> Iterator[None]:
        """Take a task's steps one by one, without measurements, so that they can be timed."""
        _, labels, batches, pixels = self._begin(task)
        for batch in batches:
            self._step(self._inputs(batch, pixels), labels.gather(1, batch))
            yield

    def batches_of(self, member: int, task: int) -> tuple[list[Tensor], Callable[[Tensor], tuple[Tensor, Tensor]]]:
        """A member's batches in a task, as indices of images, and a function from a batch to its inputs and labels."""
        _, labels, batches, pixels = self._begin(task)
        shown = None if pixels is None else pixels[member, None]
        return list(batches[:, member]), lambda batch: (self._inputs(batch[None], shown)[0], labels[member, batch])

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next task depends on.

        The global generators matter only to the user's own networks and methods, such as networks with dropout.
        """
        return {
            "data": self._fingerprint,
            **self.learner.state_dict(),
            "buffers": self.learner.buffers,
            "probe": self.probe.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self.device) if self._is_cuda else None,
        }

    @property
    def facts(self) -> dict[str, Any]:
        """Facts besides the configuration that the results may depend on."""
        # Sums: on another machine they may differ in their last digits.
        data = " ".join(f"{number:.9g}" for number in self._fingerprint)
        return {"device": self.device, "subset": self.data.subset, "data": data}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned, into the same memory.

        Raises:
            ChangedDataError: for a state from other images or labels (under one name, a part of a data set may later be
                replaced by all of it), or from a network of other shapes.
        """
        begun_with = state.get("data", [])  # the first versions saved less
        if begun_with != self._fingerprint[: len(begun_with)]:
            raise ChangedDataError("expected the images and labels of the checkpoint, got others")
        shapes, own = (
            {name: part.shape for name, part in some.items()} for some in (state["parameters"], self.learner.parameters)
        )
        if shapes != own:
            raise ChangedDataError("expected the network of the checkpoint, got one of other shapes")
        self.learner.load_state_dict(state)
        copy_into(self.learner.buffers, state["buffers"])
        self.probe.load_state_dict(state["probe"])
        torch.set_rng_state(state["random"])
        if self._is_cuda and state.get("random_cuda") is not None:  # one saved on a CPU has none
            torch.cuda.set_rng_state(state["random_cuda"], self.device)

    def _should_compile(self, convolves: bool) -> bool:
        """Whether to compile the step: if the run is long enough, its step has the right size, and this machine can."""
        run = self.run
        steps = len(self.data.train) // run.batch_size * run.epochs * run.tasks
        if run.autocast is not None or steps * len(run.seeds) < COMPILE_FROM:
            return False
        pays = self.device != "cpu" or (not convolves and operations(run) <= COMPILE_TO)
        return pays and can_compile(self.device)

    @property
    def _is_cuda(self) -> bool:
        return torch.device(self.device).type == "cuda"

    def dry_run(self) -> None:
        """Take one step on two images of the first task."""
        _, labels, batches, pixels = self._begin(0)
        batch = batches[0, :, :2]
        inputs = self._inputs(batch, pixels)
        for member, images in zip(self.learner.members, inputs, strict=True):
            models.check_outputs(member(images), len(images), self._classes, self.run.model)
        self._step(inputs, labels.gather(1, batch))

    def _begin(self, task: int) -> tuple[list[Task], Tensor, Tensor, Tensor | None]:
        """Every member's task, labels and batches (as in :meth:`_batches`) and pixels ``(members, positions)``."""
        made = (self.shift.task(self.data, seed, task) for seed in self.run.seeds)
        tasks = [
            shifts.check_task(member_task, self.data, self._classes, self.run.shift).to(self.device)
            for member_task in made
        ]
        orders = [member_task.pixels for member_task in tasks if member_task.pixels is not None]
        return tasks, *self._batches(tasks, task), torch.stack(orders) if orders else None

    def _batches(self, tasks: Sequence[Task], task: int) -> tuple[Tensor, Tensor]:
        """Every member's label of each image ``(members, examples)``, and its batches ``(steps, members, batch)``."""
        run = self.run
        examples, labels = zip(*(member_task.training_examples(self.data) for member_task in tasks), strict=True)
        sizes = sorted({len(chosen) for chosen in examples})
        if run.batch_size > sizes[0]:
            raise ValueError(
                f"expected a batch of at most {sizes[0]} images, which are all that a task has, got {run.batch_size}: "
                "choose a smaller one (--batch-size)"
            )
        if len({size // run.batch_size for size in sizes}) > 1:
            raise ValueError(
                f"expected tasks with equally many batches of {run.batch_size} for every seed, got {sizes} images: "
                "train each seed by its own command (--seeds 1 --first-seed N), or choose another batch size"
            )
        orders = []
        for member_task, chosen, seed in zip(tasks, examples, run.seeds, strict=True):
            order = batch_order(len(chosen), run.batch_size, run.epochs, seed, task, shuffled=member_task.shuffled)
            orders.append(chosen[order.to(self.device)])
        return torch.stack(labels), torch.stack(orders, dim=1)

    def _inputs(self, batch: Tensor, pixels: Tensor | None) -> Tensor:
        """The normalized images of each member's batch, ``(members, batch, channels, height, width)``."""
        images = self.data.train.images.index_select(0, batch.flatten()).view(
            *batch.shape, *self.data.train.images.shape[1:]
        )
        return self.data.normalized(seen(images, pixels))

    def _advance(self, x: Tensor, y: Tensor) -> Tensor:
        """Take one step of every member, on inputs ``(members, batch, ...)`` and labels ``(members, batch)``.

        Returns:
            How many images each member classified correctly, before it learned from them.
        """
        correct: Tensor = self.learner.learn(self._loss, x, y)
        return correct

    def outputs(self, network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """A network's float32 outputs in a training step, in the run's precision and memory format."""
        if self._channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        if self.run.autocast is None:
            return network(x)
        with torch.autocast(x.device.type, getattr(torch, self.run.autocast)):
            return network(x).float()

    def _loss(self, network: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.outputs(network, x)
        return cross_entropy(outputs, y), is_right(outputs.detach(), y).sum()


def train(
    run: Run, report: Report = lambda tasks: None, *, root: str, pieces: int = 1, keep: int | None = None
) -> bool:
    """Train a run in its folder under ``root``; resume after its last finished task.

    Args:
        run: what to train.
        report: called regularly with the number of tasks done, including fractions.
        root: the folder of all runs.
        pieces: the number of calls that finish a run; runs can share workers between calls.
        keep: keep a checkpoint after every ``keep`` tasks; only the last when left out.

    Returns:
        Whether tasks are left.
    """

    def start() -> Trainer:
        torch.manual_seed(run.seeds[0])
        return Trainer(run)

    return work_on(run.folder(root), run.tasks, start, report, calls=pieces, keep=keep)
