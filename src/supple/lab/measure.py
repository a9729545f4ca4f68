"""Measurements of a population at the end of a task."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from supple.diagnostics.measurements import Measurements
from supple.lab.datasets import Dataset, Examples
from supple.lab.shifts import Task, seen
from supple.mitigators.states import Tensors
from supple.network.population import Population
from supple.runs.streams import Stream, generator

CHUNK = 1024
"""Images per forward pass in an evaluation."""

PROBE = 128
"""Images in the fixed batch on which diagnostics are computed."""


class Probe:
    """A fixed batch for diagnostics, and the population's earlier state on it.

    The images are evenly spaced over the training images; the shift is not applied to them. Their random labels are
    drawn once per seed and belong to no task, so gradients are as at the start of a new task. The representation change
    compares the end of one task with the end of the next.

    Args:
        population: before training.
        data: the source of the images.
        classes: number of classes of the labels.
        diagnostics: names from :data:`supple.diagnostics.DIAGNOSTICS`.
    """

    def __init__(self, population: Population, data: Dataset, classes: int, diagnostics: Sequence[str]) -> None:
        images = data.train.images[torch.arange(PROBE) * len(data.train) // PROBE]
        x = data.normalized(images)
        labels = [generator(Stream.PROBE, seed).integers(classes, size=PROBE) for seed in population.seeds]
        y = torch.stack([torch.from_numpy(drawn) for drawn in labels]).to(x.device)
        self._measurements = Measurements(population, x.expand(len(population), *x.shape), y, diagnostics)
        self._measurements.keep()

    def measure(self) -> Tensors:
        """Each diagnostic, one value per member; diagnostics of hidden layers are left out if there are none."""
        return {name: by_layer[""] for name, by_layer in self._measurements.measure().items() if by_layer}

    def state_dict(self) -> dict[str, Tensors]:
        """The state that the next measurement is compared with."""
        return self._measurements.state_dict()

    def load_state_dict(self, state: dict[str, Tensors]) -> None:
        """Restore the result of :meth:`state_dict`."""
        self._measurements.load_state_dict(state)


@torch.no_grad()
def evaluate(members: Sequence[nn.Module], data: Dataset, tasks: Sequence[Task]) -> Tensors:
    """The metrics at the end of a task, by name (:data:`supple.runs.metrics.METRICS`), one value per member."""
    results = [_evaluate(member, data, task) for member, task in zip(members, tasks, strict=True)]
    return {metric: torch.stack([result[metric] for result in results]) for metric in results[0]}


def _evaluate(member: nn.Module, data: Dataset, task: Task) -> Tensors:
    member.eval()
    outputs, labels = _outputs(member, data, task, data.train, task.training_examples(data))
    metrics = {"train_accuracy": _accuracy(outputs, labels), "train_loss": cross_entropy(outputs, labels)}
    for name, part in (("validation_accuracy", data.validation), ("test_accuracy", data.test)):
        if part is not None and task.labels is None:
            metrics[name] = _accuracy(*_outputs(member, data, task, part, task.examples(part)))
    member.train()
    finite = torch.stack([parameter.isfinite().all() for parameter in member.parameters()]).all()
    return metrics | {"diverged": (~finite).float()}


def _outputs(
    member: nn.Module, data: Dataset, task: Task, part: Examples, examples: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    chosen, labels = examples
    pixels = None if task.pixels is None else task.pixels[None]
    chunks = [seen(part.images[None, chunk], pixels)[0] for chunk in chosen.split(CHUNK)]
    return torch.cat([member(data.normalized(images)) for images in chunks]), labels[chosen]


def _accuracy(outputs: Tensor, labels: Tensor) -> Tensor:
    return is_right(outputs, labels).float().mean()


def is_right(outputs: Tensor, labels: Tensor) -> Tensor:
    """Whether the largest output of each example is that of its label; with NaN among them it is not."""
    return (outputs.argmax(-1) == labels) & ~outputs.isnan().any(-1)
