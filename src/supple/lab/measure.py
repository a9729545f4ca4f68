"""What is measured of a population at a task's end."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from supple.lab.datasets import Dataset, Examples
from supple.lab.shifts import Task, seen
from supple.population import Population
from supple.roles import find_roles

CHUNK = 1024
"""Images that pass through a network at once."""


@torch.no_grad()
def measure(
    population: Population, members: Sequence[nn.Module], data: Dataset, tasks: Sequence[Task]
) -> dict[str, Tensor]:
    """By metric, one value a member: trainability, generalisation where there is any, and the weights.

    ======================  ===================================================================
    ``train_accuracy``      on all training examples of the task: trainability
    ``train_loss``          cross entropy on them
    ``validation_accuracy`` where the data have such a part and the labels follow from the images
    ``test_accuracy``       likewise: generalisation
    ``spectral_norm``       largest singular value, mean over layers
    ``weight_norm``         norm of all parameters
    ``diverged``            1 where a parameter is not finite any more
    ======================  ===================================================================
    """
    found = [_evaluate(member, data, task) for member, task in zip(members, tasks, strict=True)]
    measured = {metric: torch.stack([each[metric] for each in found]) for metric in found[0]}
    parameters = dict(population.stacked.named_parameters())
    roles = find_roles(population)
    norms = [
        role.spectral_norms(parameters[name]).view(len(members), -1)
        for name, role in roles.items()
        if role.kind == "matrix"
    ]
    squares = torch.stack([roles[name].vector(parameter).square().sum(-1) for name, parameter in parameters.items()])
    finite = torch.stack([parameter.flatten(1).isfinite().all(1) for parameter in parameters.values()])
    return measured | {
        "spectral_norm": torch.cat(norms, -1).mean(-1),
        "weight_norm": squares.sum(0).sqrt(),
        "diverged": (~finite.all(0)).float(),
    }


def _evaluate(member: nn.Module, data: Dataset, task: Task) -> dict[str, Tensor]:
    member.eval()
    outputs, labels = _outputs(member, data, task, data.train, task.training_examples(data))
    found = {"train_accuracy": _accuracy(outputs, labels), "train_loss": cross_entropy(outputs, labels)}
    for name, part in (("validation_accuracy", data.validation), ("test_accuracy", data.test)):
        if part is not None and task.labels is None:
            found[name] = _accuracy(*_outputs(member, data, task, part, task.examples(part)))
    member.train()
    return found


def _outputs(
    member: nn.Module, data: Dataset, task: Task, part: Examples, examples: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    chosen, labels = examples
    pixels = None if task.pixels is None else task.pixels[None]
    chunks = [seen(part.images[None, chunk], pixels)[0] for chunk in chosen.split(CHUNK)]
    return torch.cat([member(data.normalized(images)) for images in chunks]), labels[chosen]


def _accuracy(outputs: Tensor, labels: Tensor) -> Tensor:
    return (outputs.argmax(-1) == labels).float().mean()
