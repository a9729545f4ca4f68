"""Figure 4: how much trainability depends on the strength, with a ResNet-18."""

from supple.figures.figure import Figure, Panel, sensitivity
from supple.lab.problems import Scale


def panels(scale: Scale, seeds: int) -> list[list[Panel]]:
    data = ("tiny-imagenet", "cifar10", "cifar100") if scale == "paper" else ("cifar10",)
    return [[sensitivity(f"random-label-{name}", scale, seeds) for name in data]]


FIGURE = Figure(
    title="Figure 4: sensitivity to the strength of regularization, ResNet-18",
    claim="Spectral regularization is insensitive to its strength while sustaining higher trainability for any given "
    "strength.",
    panels=panels,
    note="the paper's text does not name the data of its panels; here: random labels on the sets of Figure 3",
)
