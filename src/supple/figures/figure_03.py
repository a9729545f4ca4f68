"""Figure 3: trainability, spectral norm and representation change of a ResNet-18 that memorizes random labels."""

from supple.figures.figure import Figure, Panel, compared
from supple.lab.problems import Scale

METRICS = ("train_accuracy", "spectral_norm", "representation_change")


def panels(scale: Scale, seeds: int) -> list[list[Panel]]:
    data = ("tiny-imagenet", "cifar10", "cifar100") if scale == "paper" else ("cifar10", "cifar100")
    runs = {
        each: compared(f"random-label-{each}", scale, seeds, strengths=[1e-4], diagnostics=METRICS[1:]) for each in data
    }
    return [[Panel(each, runs[each], metric) for each in data] for metric in METRICS]


FIGURE = Figure(
    title="Figure 3: inside a ResNet-18 that memorizes random labels",
    claim="Baselines that suffer from a loss of trainability also have an increasing average spectral norm and a "
    "decrease in their average representation change.",
    panels=panels,
)
