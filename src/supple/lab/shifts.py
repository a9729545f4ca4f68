"""How a problem changes from task to task: pure functions of the data, the member's seed and the task.

Every method thereby sees the same tasks, and any task can be made again alone. Random numbers are drawn from generators
named by what they are for: two streams never depend on each other, nor on what was drawn before.
"""

from collections.abc import Callable
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from supple.lab.datasets import Dataset


class Stream(IntEnum):
    """What random numbers are drawn for; the numbers are part of every result and never change."""

    LABELS = 1
    ORDER = 2


def generator(stream: Stream, seed: int, *counters: int) -> np.random.Generator:
    """Random numbers that depend on nothing but these arguments."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((stream, seed, *counters))))


def random_labels(data: Dataset, seed: int, task: int) -> Tensor:
    """A new label for every image, uniform and independent of all others; classes come out only roughly balanced."""
    return torch.from_numpy(generator(Stream.LABELS, seed, task).integers(data.classes, size=len(data.train)))


def batch_order(examples: int, batch_size: int, epochs: int, seed: int, task: int) -> Tensor:
    """Which examples make up each batch, ``(epochs · steps, batch_size)``: a fresh permutation every epoch.

    What is left over when the examples do not divide into batches is left out, others each epoch.
    """
    used = examples // batch_size * batch_size
    rng = generator(Stream.ORDER, seed, task)
    order = np.concatenate([rng.permutation(examples)[:used] for _ in range(epochs)])
    return torch.from_numpy(order).view(-1, batch_size)


SHIFTS: dict[str, Callable[[Dataset, int, int], Tensor]] = {"random-labels": random_labels}
