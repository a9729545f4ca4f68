"""Methods, a shift and a problem as users may write them; tests name them as ``package.module:function``."""

import torch

import supple


class Bare(supple.Mitigator):
    """Without a constructor, and so without a default strength."""


class Dialless(supple.Mitigator):
    """Without a strength."""

    def __init__(self, network) -> None:
        super().__init__(network, 1.0)


class Free(supple.L2Regularizer):
    """A regularizer with a keyword of any kind."""

    def __init__(self, network, strength=0.1, *, anything=None):
        super().__init__(network, strength)
        self.anything = anything


def rolled_labels(data, seed, task):
    """A shift: each task, every label is the next one."""
    from supple.lab.shifts import Task

    return Task(classes=torch.arange(data.classes).roll(task))


def own_problem():
    """A problem that is nobody else's."""
    from supple.lab.problems import Problem

    return Problem(
        title="A problem of one's own",
        summary="",
        dataset="digits",
        shift="label-flip",
        batch_size=32,
        epochs=1,
        tasks=3,
        published=False,
    )
