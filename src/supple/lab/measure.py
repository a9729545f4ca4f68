"""What is measured of a population at a task's end."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from supple.diagnostics import DIAGNOSTICS, Inspection
from supple.lab.datasets import Dataset, Examples
from supple.lab.shifts import Task, seen
from supple.network.population import Population
from supple.runs.streams import Stream, generator

CHUNK = 1024
"""Images that pass through a network at once."""

PROBE = 128
"""Images of the fixed batch on which diagnostics look inside."""

Tensors = dict[str, Tensor]


class Probe:
    """A fixed batch, and what a population looked like on it before.

    The images are spread evenly over the training images, and seen as they are, whatever the shift. Their labels are
    drawn once a seed and are those of no task: gradients are what they would be at the start of another one.
    Representations are compared from the end of one task, which is the beginning of the next, to the end of that.

    Args:
        population: before training.
        data: what the images are from.
        classes: of the labels.
        diagnostics: names from :data:`supple.diagnostics.DIAGNOSTICS`.
    """

    def __init__(self, population: Population, data: Dataset, classes: int, diagnostics: Sequence[str]) -> None:
        self._population, self._diagnostics = population, diagnostics
        images = data.train.images[torch.arange(PROBE) * len(data.train) // PROBE]
        x = data.normalized(images)
        self._x = x.expand(len(population), *x.shape)
        labels = [generator(Stream.PROBE, seed).integers(classes, size=PROBE) for seed in population.seeds]
        self._y = torch.stack([torch.from_numpy(each) for each in labels]).to(x.device)
        self._initial: Tensors = {}
        self._previous: Tensors = {}
        needs = {need for name in diagnostics for need in DIAGNOSTICS[name].needs}
        inspection = self._inspect()
        if "initial" in needs:
            self._initial = {name: vector.clone() for name, vector in inspection.parameters.items()}
        if "previous" in needs:
            self._previous = inspection.activations

    def measure(self) -> Tensors:
        """The networks' value of each diagnostic, one a member; of hidden layers none where there is no such layer."""
        inspection = self._inspect()
        by_layer = {name: DIAGNOSTICS[name](inspection) for name in self._diagnostics}
        found = {name: values[""] for name, values in by_layer.items() if values}
        if self._previous:
            self._previous = inspection.activations
        return found

    def state_dict(self) -> dict[str, Tensors]:
        """What the next measurement is compared with."""
        return {"initial": self._initial, "previous": self._previous}

    def load_state_dict(self, state: dict[str, Tensors]) -> None:
        """Take over what :meth:`state_dict` returned."""
        device = self._x.device
        self._initial = {name: tensor.to(device) for name, tensor in state["initial"].items()}
        self._previous = {name: tensor.to(device) for name, tensor in state["previous"].items()}

    def _inspect(self) -> Inspection:
        return Inspection(self._population, self._x, self._y, initial=self._initial, previous=self._previous)


@torch.no_grad()
def evaluate(members: Sequence[nn.Module], data: Dataset, tasks: Sequence[Task]) -> Tensors:
    """By metric, one value a member: trainability, and generalisation where there is any.

    ======================= ===================================================================
    ``train_accuracy``      on all training examples of the task: trainability
    ``train_loss``          cross entropy on them
    ``validation_accuracy`` where the data have such a part and the labels follow from the images
    ``test_accuracy``       likewise: generalisation
    ``diverged``            1 where a parameter is not finite any more
    ======================= ===================================================================
    """
    found = [_evaluate(member, data, task) for member, task in zip(members, tasks, strict=True)]
    return {metric: torch.stack([each[metric] for each in found]) for metric in found[0]}


def _evaluate(member: nn.Module, data: Dataset, task: Task) -> Tensors:
    member.eval()
    outputs, labels = _outputs(member, data, task, data.train, task.training_examples(data))
    found = {"train_accuracy": _accuracy(outputs, labels), "train_loss": cross_entropy(outputs, labels)}
    for name, part in (("validation_accuracy", data.validation), ("test_accuracy", data.test)):
        if part is not None and task.labels is None:
            found[name] = _accuracy(*_outputs(member, data, task, part, task.examples(part)))
    member.train()
    finite = torch.stack([parameter.isfinite().all() for parameter in member.parameters()]).all()
    return found | {"diverged": (~finite).float()}


def _outputs(
    member: nn.Module, data: Dataset, task: Task, part: Examples, examples: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    chosen, labels = examples
    pixels = None if task.pixels is None else task.pixels[None]
    chunks = [seen(part.images[None, chunk], pixels)[0] for chunk in chosen.split(CHUNK)]
    return torch.cat([member(data.normalized(images)) for images in chunks]), labels[chosen]


def _accuracy(outputs: Tensor, labels: Tensor) -> Tensor:
    return (outputs.argmax(-1) == labels).float().mean()
