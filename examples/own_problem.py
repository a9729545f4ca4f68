"""A problem of your own in one file: two moons that turn a little each task.

    supple sweep own_problem:turning_moons --methods none l2 spectral --model own_model:residual

The folder that holds this file must be on PYTHONPATH.
"""

import math

import torch

from supple.lab.datasets import Dataset, Examples
from supple.lab.problems import Problem
from supple.lab.shifts import Stream, Task, generator


def moons() -> Dataset:
    """Two classes of images of 8x8, each with one bright spot on its half circle."""
    rng = generator(Stream.LABELS, 0, 0)
    labels = torch.arange(1024) % 2
    angle = math.pi * torch.from_numpy(rng.random(1024)) + math.pi * labels
    column, row = 3.5 + 3 * angle.cos(), 3.5 + 3 * angle.sin()
    grid = torch.arange(8)
    spots = torch.exp(-((grid[None, None] - column[:, None, None]) ** 2 + (grid[:, None] - row[:, None, None]) ** 2))
    images = (255 * spots).to(torch.uint8).unsqueeze(1)
    return Dataset(train=Examples(images, labels), validation=None, test=None, classes=2, mean=(0.0,), std=(1.0,))


def turning(data: Dataset, seed: int, task: int) -> Task:
    """A quarter turn each task: a permutation of the pixels."""
    positions = torch.arange(64).view(8, 8)
    return Task(classes=torch.arange(data.classes), pixels=torch.rot90(positions, task).flatten())


def turning_moons() -> Problem:
    """The problem: data, change, and protocol."""
    return Problem(
        summary="two moons that turn",
        dataset="own_problem:moons",
        shift="own_problem:turning",
        batch_size=64,
        epochs=5,
        tasks=8,
        published=False,
    )
