"""Figure 3: trainability, spectral norm and representation change of a ResNet-18 that memorizes random labels."""

from supple.figures.figure import ALL_SCALES, PAPERS_STRENGTHS, Figure, Panel, compared
from supple.lab.problems import Scale, title_of

METRICS = ("train_accuracy", "spectral_norm", "representation_change")


def panels(scale: Scale, seeds: int) -> list[list[Panel]]:
    data = ("tiny-imagenet", "cifar10", "cifar100") if scale == "paper" else ("cifar10", "cifar100")
    problems = [f"random-label-{name}" for name in data]
    runs = {name: compared(name, scale, seeds, strengths=[1e-4], diagnostics=METRICS[1:]) for name in problems}
    # What a narrow network loses at reduced scale is speed (docs/reduced.md).
    metrics = ("online_accuracy", *METRICS) if scale == "reduced" else METRICS
    return [[Panel(title_of(name), runs[name], metric) for name in problems] for metric in metrics]


FIGURE = Figure(
    title="Figure 3: inside a ResNet-18 that memorizes random labels",
    claim="Baselines that suffer from a loss of trainability also have an increasing average spectral norm and a "
    "decrease in their average representation change.",
    panels=panels,
    note=f"without the paper's last row, which its caption does not explain; {PAPERS_STRENGTHS}",
    scales=ALL_SCALES,
)
