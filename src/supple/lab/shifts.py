"""How a problem changes from task to task: pure functions of the data, the member's seed and the task's number.

So every method sees the same tasks, and any task can be recreated without the earlier ones.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from supple.errors import imported, known
from supple.lab.datasets import Dataset, Examples
from supple.runs.streams import Stream, generator

ABSENT = -1
"""The label of a class that is not in the task."""

CLASSES_A_TASK = 5
"""Class-incremental learning starts with this many classes, and adds as many per task (from the paper)."""

SAMPLED = 1 / 6
"""The share of the images that a task samples: 10,000 of MNIST's 60,000 (Kumar et al., 2023)."""

DRIFT = 1 / 40
"""The share that changes per epoch: in 40 epochs, as much as from task to task in the paper's shortest protocol."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One member's current task: how the shift changes the data."""

    classes: Tensor
    """int64 ``(classes,)``: the label of each class in this task, ``ABSENT`` if the class is not in it."""
    labels: Tensor | None = None
    """int64 ``(examples,)``: labels of the training images that are independent of their classes."""
    pixels: Tensor | None = None
    """int64 ``(positions,)``: for each position, the position of the original pixel shown there, in all channels."""

    images: Tensor | None = None
    """int64 ``(n,)``: the indices of the training images in the task, if it does not have all."""
    shuffled: bool = True
    """Whether each epoch has the examples in a new order."""

    def examples(self, of: Examples) -> tuple[Tensor, Tensor]:
        """The indices of the examples in the task, int64 ``(n,)``, and the label of every example."""
        labels = self.classes[of.labels]
        return torch.nonzero(labels != ABSENT).squeeze(1), labels

    def training_examples(self, data: Dataset) -> tuple[Tensor, Tensor]:
        """As :meth:`examples`, for the training images."""
        if self.labels is not None:
            chosen, labels = torch.arange(len(self.labels), device=self.labels.device), self.labels
        else:
            chosen, labels = self.examples(data.train)
        return chosen if self.images is None else self.images, labels

    def to(self, device: torch.device | str) -> "Task":
        """The same task on ``device``."""
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)


def seen(images: Tensor, pixels: Tensor | None) -> Tensor:
    """Images ``(members, n, channels, height, width)``, permuted in each member's order ``(members, positions)``."""
    if pixels is None:
        return images
    flat = images.flatten(-2)
    return flat.gather(-1, pixels[:, None, None].expand(flat.shape)).view_as(images)


def random_labels(data: Dataset, seed: int, task: int) -> Task:
    """A new random label for every image, uniform and independent; so classes are only roughly balanced."""
    labels = generator(Stream.LABELS, seed, task).integers(data.classes, size=len(data.train.labels))
    return Task(classes=torch.arange(data.classes), labels=torch.from_numpy(labels))


def shuffled_labels(data: Dataset, seed: int, task: int) -> Task:
    """The true labels in a random order: random labels that keep each class as large as it is (Kumar et al., 2023)."""
    order = generator(Stream.LABELS, seed, task).permutation(len(data.train.labels))
    return Task(classes=torch.arange(data.classes), labels=data.train.labels.cpu()[torch.from_numpy(order)])


def ordered_random_labels(data: Dataset, seed: int, task: int) -> Task:
    """Random labels for images that come in the same order in every epoch (Lillo & Cheney, 2025)."""
    return replace(random_labels(data, seed, task), shuffled=False)


def fixed_random_labels(data: Dataset, seed: int, task: int) -> Task:
    """The random labels of the first task in every task: nothing changes."""
    return random_labels(data, seed, 0)


def drifting_labels(data: Dataset, seed: int, task: int) -> Task:
    """Random labels; every task redraws a share ``DRIFT`` of them. With one epoch per task, the drift is gradual.

    An image gets its next label when ⌊task·DRIFT + phase⌋ grows; each image has its own phase between 0 and 1.
    """
    examples = len(data.train.labels)
    phase = generator(Stream.PHASES, seed).permutation(examples) / examples
    draws = np.floor(task * DRIFT + phase).astype(np.int64)
    labels = np.empty(examples, dtype=np.int64)
    for draw in np.unique(draws):
        drawn = generator(Stream.LABELS, seed, int(draw)).integers(data.classes, size=examples)
        labels[draws == draw] = drawn[draws == draw]
    return Task(classes=torch.arange(data.classes), labels=torch.from_numpy(labels))


def pixel_permutation(data: Dataset, seed: int, task: int) -> Task:
    """One new permutation of the pixel positions for all images; the channels of a position stay together."""
    order = generator(Stream.PIXELS, seed, task).permutation(_positions(data))
    return Task(classes=torch.arange(data.classes), pixels=torch.from_numpy(order))


def sampled_pixel_permutation(data: Dataset, seed: int, task: int) -> Task:
    """A new sample of a sixth of the images each task; the first task not permuted (Kumar et al., 2023)."""
    plain, count = pixel_permutation(data, seed, task), max(1, round(SAMPLED * len(data.train)))
    return replace(plain, pixels=plain.pixels if task else None, images=_sample(data, seed, task, count))


def compounding_pixel_permutation(data: Dataset, seed: int, task: int) -> Task:
    """The composition of all tasks' permutations so far. Each task looks like a new permutation."""
    order = np.arange(_positions(data))
    for task_number in range(task + 1):
        order = order[generator(Stream.PIXELS, seed, task_number).permutation(len(order))]
    return Task(classes=torch.arange(data.classes), pixels=torch.from_numpy(order))


def drifting_pixels(data: Dataset, seed: int, task: int) -> Task:
    """First the original images; then each task permutes another random share ``DRIFT`` of the positions."""
    order = np.arange(_positions(data))
    moved = max(2, round(DRIFT * len(order)))
    for task_number in range(task):
        rng = generator(Stream.PIXELS, seed, task_number)
        chosen = rng.choice(len(order), moved, replace=False)
        order[chosen] = order[np.roll(chosen, 1)]
    return Task(classes=torch.arange(data.classes), pixels=torch.from_numpy(order))


def label_flip(data: Dataset, seed: int, task: int) -> Task:
    """A permutation of the classes: all images with one label get the same other label."""
    return Task(classes=torch.from_numpy(generator(Stream.FLIP, seed, task).permutation(data.classes)))


def streamed(shift: Callable[[Dataset, int, int], Task], data: Dataset, seed: int, task: int, *, images: int) -> Task:
    """Another shift on a new sample of ``images`` images (or all, if fewer) each task (Elsayed et al., 2024)."""
    return replace(shift(data, seed, task), images=_sample(data, seed, task, images))


def compounding_label_flip(data: Dataset, seed: int, task: int) -> Task:
    """The composition of all tasks' flips so far. Each task looks like a new flip."""
    labels = np.arange(data.classes)
    for task_number in range(task + 1):
        labels = generator(Stream.FLIP, seed, task_number).permutation(data.classes)[labels]
    return Task(classes=torch.from_numpy(labels))


def class_incremental(data: Dataset, seed: int, task: int) -> Task:
    """Five classes, and five more each task, in an order that depends on the seed; labels do not change."""
    classes = torch.full((data.classes,), ABSENT)
    present = torch.from_numpy(generator(Stream.CLASSES, seed).permutation(data.classes)[: CLASSES_A_TASK * (task + 1)])
    classes[present] = present
    return Task(classes=classes)


def class_pairs(data: Dataset, seed: int, task: int) -> Task:
    """Two classes, labelled 0 and 1; every class is used once before any class is used again."""
    pairs = data.classes // 2
    order = generator(Stream.PAIRS, seed, task // pairs).permutation(data.classes)
    classes = torch.full((data.classes,), ABSENT)
    classes[order[2 * (task % pairs) :][:2]] = torch.arange(2)
    return Task(classes=classes)


def growing_set(data: Dataset, seed: int, task: int, *, chunks: int) -> Task:
    """The first ``task + 1`` of ``chunks`` equal chunks of the training images, in random order (Ash & Adams, 2020)."""
    order = generator(Stream.SAMPLE, seed).permutation(len(data.train))
    arrived = order[: len(order) * (task + 1) // chunks]
    return Task(classes=torch.arange(data.classes), images=torch.from_numpy(np.sort(arrived)))


def batch_order(examples: int, batch_size: int, epochs: int, seed: int, task: int, *, shuffled: bool = True) -> Tensor:
    """The indices of the examples in each batch, ``(epochs · steps, batch_size)``: a new permutation every epoch.

    Each epoch leaves out the examples that do not fill a last batch. Not shuffled, the examples keep their order in
    every epoch, and the last ones are left out.
    """
    used = examples // batch_size * batch_size
    rng = generator(Stream.ORDER, seed, task)
    order = np.concatenate([rng.permutation(examples)[:used] if shuffled else np.arange(used) for _ in range(epochs)])
    return torch.from_numpy(order).view(-1, batch_size)


def _sample(data: Dataset, seed: int, task: int, count: int) -> Tensor:
    """The sorted indices of ``count`` random training images, or of all if there are fewer."""
    rng = generator(Stream.SAMPLE, seed, task)
    return torch.from_numpy(np.sort(rng.choice(len(data.train), min(count, len(data.train)), replace=False)))


def _positions(data: Dataset) -> int:
    return data.train.images[0, 0].numel()


class Shift(NamedTuple):
    """One way for a problem to change."""

    task: Callable[[Dataset, int, int], Task]
    """Makes a task from a data set, a member's seed and the task's number."""
    outputs: Callable[[Dataset], int] = lambda data: data.classes
    """Number of classes that a network must distinguish."""
    tasks: Callable[[Dataset], float] = lambda data: float("inf")
    """The largest number of tasks that the data allow."""


SHIFTS: dict[str, Shift] = {
    "random-labels": Shift(random_labels),
    "shuffled-labels": Shift(shuffled_labels),
    "fixed-random-labels": Shift(fixed_random_labels),
    "ordered-random-labels": Shift(ordered_random_labels),
    "drifting-labels": Shift(drifting_labels),
    "pixel-permutation": Shift(pixel_permutation),
    "sampled-pixel-permutation": Shift(sampled_pixel_permutation),
    "pixel-permutation-of-5000": Shift(partial(streamed, pixel_permutation, images=5_000)),
    "pixel-permutation-of-50000": Shift(partial(streamed, pixel_permutation, images=50_000)),
    "compounding-pixel-permutation": Shift(compounding_pixel_permutation),
    "drifting-pixels": Shift(drifting_pixels),
    "label-flip": Shift(label_flip),
    "label-flip-of-2500": Shift(partial(streamed, label_flip, images=2_500)),
    "compounding-label-flip": Shift(compounding_label_flip),
    "class-incremental": Shift(class_incremental, tasks=lambda data: data.classes // CLASSES_A_TASK),
    "class-pairs": Shift(
        class_pairs, outputs=lambda data: 2, tasks=lambda data: float("inf") if data.classes > 1 else 0
    ),
    "warm-start": Shift(partial(growing_set, chunks=2), tasks=lambda data: 2),
    "ten-chunks": Shift(partial(growing_set, chunks=10), tasks=lambda data: 10),
}


def find(name: str) -> Shift:
    """The shift with this name: an entry of ``SHIFTS``, or ``package.module:function``, used as :attr:`Shift.task`."""
    return Shift(imported(name)) if ":" in name else SHIFTS[known(name, SHIFTS, "shift or package.module:function")]


def check_task(task: object, data: Dataset, outputs: int, name: str) -> Task:
    """Check that a network with ``outputs`` outputs can learn a shift's task from these data; return the task.

    Raises:
        ValueError: otherwise; the message names the shift.
    """
    if not isinstance(task, Task):
        raise ValueError(f"expected a Task from the shift {name}, got {type(task).__name__}: return a Task")
    if task.labels is not None and task.labels.shape != data.train.labels.shape:
        raise ValueError(
            f"expected {len(data.train)} labels from the shift {name}, got shape {tuple(task.labels.shape)}: "
            "give one for each training image"
        )
    if task.classes.shape != (data.classes,):
        raise ValueError(
            f"expected labels of {data.classes} classes from the shift {name}, got shape {tuple(task.classes.shape)}: "
            "give one for each class"
        )
    given = task.classes[task.classes != ABSENT] if task.labels is None else task.labels
    if len(given) and not 0 <= given.min() <= given.max() < outputs:
        raise ValueError(
            f"expected labels from 0 to {outputs - 1} from the shift {name}, got {given.min()} to {given.max()}: "
            "number the classes from 0"
        )
    if task.pixels is not None and task.pixels.sort().values.tolist() != list(range(_positions(data))):
        raise ValueError(
            f"expected a permutation of {_positions(data)} pixels from the shift {name}, got another tensor: correct it"
        )
    return task
