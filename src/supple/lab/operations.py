"""The size of a training step and of tasks, which determine whether to stack members and whether to compile."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from supple.lab import datasets, models, shifts
from supple.lab.run import Run
from supple.training import methods


def operations(run: Run) -> float:
    """Additions and multiplications in one member's training step: three times those of the forward pass.

    Only linear maps and convolutions count. Torch's own counter counts more, but takes half a second to import.
    """
    counted = 0

    def count(layer: nn.Linear | nn.Conv2d, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal counted
        counted += 2 * output.numel() * layer.weight[0].numel()

    with run.naming_own_parts(), torch.random.fork_rng(devices=()), torch.no_grad():
        data, shift, options = datasets.load(run.dataset), shifts.find(run.shift), methods.find(run.method).network
        made = models.find(run.model)(replace(data, classes=shift.outputs(data)), **options)
        network = models.check_network(made, run.model).eval()
        for layer in network.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                layer.register_forward_hook(count)
        network(torch.zeros(1, *data.train.images.shape[1:]))
    return 3.0 * run.batch_size * counted


def equally_long(run: Run) -> bool:
    """Whether the tasks of all seeds have the same number of images; they do not if classes differ in size."""
    with run.naming_own_parts():
        data, shift = datasets.load(run.dataset).thinned(run.examples), shifts.find(run.shift)
        task = shifts.check_task(shift.task(data, run.seeds[0], 0), data, shift.outputs(data), run.shift)
    sizes = data.train.labels.bincount(minlength=data.classes)
    return not (task.classes == shifts.ABSENT).any() or bool((sizes == sizes[0]).all())
