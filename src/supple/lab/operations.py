"""How large a training step is: what decides whether members are stacked, and whether compiling pays."""

from dataclasses import replace

import torch

from supple.lab import datasets, methods, models, shifts
from supple.lab.run import Run


def operations(run: Run) -> float:
    """Additions and multiplications of one member's training step: three times those of the forward pass."""
    from torch.utils.flop_counter import FlopCounterMode

    data, shift = datasets.load(run.dataset), shifts.load(run.shift)
    method = methods.load(run.method)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = models.load(run.model)(replace(data, classes=shift.outputs(data)), **method.model)
        network(torch.empty(run.batch_size, *data.train.images.shape[1:]))
    return 3.0 * float(counter.get_total_flops())
