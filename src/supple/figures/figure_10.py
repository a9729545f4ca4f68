"""Figure 10: how much trainability depends on the strength, with the multi-layer perceptron."""

from supple.figures.figure import Figure, Panel, sensitivity
from supple.lab.problems import Scale

TASKS: dict[Scale, int | None] = {"quick": 10, "paper": None}


def panels(scale: Scale, seeds: int) -> list[list[Panel]]:
    return [
        [
            sensitivity(problem, scale, seeds, tasks=TASKS[scale])
            for problem in ("random-label-mnist", "random-label-fashion-mnist")
        ]
    ]


FIGURE = Figure(
    title="Figure 10: sensitivity to the strength of regularization, MLP",
    claim="Spectral regularization is insensitive to its strength while sustaining higher trainability for any given "
    "strength.",
    panels=panels,
    note="the paper's text does not name the data of its panels; here: random labels on the sets of Figure 7",
)
