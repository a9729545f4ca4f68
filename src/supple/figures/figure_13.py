"""Figure 13: how well a ResNet-18 fits one set of random labels, at the strengths that sustain plasticity."""

from supple.figures.figure import ALL_SCALES, PAPERS_STRENGTHS, Figure, Panel, compared
from supple.lab.problems import Scale, title_of


def panels(scale: Scale, seeds: int) -> list[list[Panel]]:
    problems = ["random-label-cifar10"]
    if scale == "paper":
        problems = ["random-label-tiny-imagenet", *problems, "random-label-cifar100"]
    epochs = {"quick": 15, "reduced": 40, "paper": 200}[scale]
    return [
        [
            # One task, measured after each epoch.
            Panel(
                title_of(problem),
                compared(
                    problem,
                    scale,
                    seeds,
                    strengths=[1e-4],
                    shift="fixed-random-labels",
                    epochs=1,
                    tasks=epochs,
                ),
            )
            for problem in problems
        ]
    ]


FIGURE = Figure(
    title="Figure 13: capacity, one task of random labels, measured after each epoch (here called a task)",
    claim="Spectral regularization restricts the capacity of the network least of all regularizers.",
    panels=panels,
    note="the paper's text states neither data nor epochs; here: 200 epochs (15 at quick scale, 40 at reduced); "
    + PAPERS_STRENGTHS,
    scales=ALL_SCALES,
)
