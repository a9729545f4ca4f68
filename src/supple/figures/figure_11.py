"""Figure 11: how much trainability depends on the kind of change, on EMNIST."""

from supple.figures.figure import Figure, Panel, sensitivity
from supple.lab.problems import Scale

TASKS: dict[Scale, int | None] = {"quick": 10, "paper": None}


def panels(scale: Scale, seeds: int) -> list[list[Panel]]:
    shifts = ("random-label", "pixel-permutation", "label-flip")
    return [[sensitivity(f"{shift}-emnist", scale, seeds, tasks=TASKS[scale]) for shift in shifts]]


FIGURE = Figure(
    title="Figure 11: sensitivity to the kind of change on EMNIST",
    claim="Spectral regularization maintains high trainability under all three kinds of change; with random labels, L2 "
    "towards zero and towards the initialization are unable to.",
    panels=panels,
)
