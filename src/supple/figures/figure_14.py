"""Figure 14: diagnostics of a ResNet-18 that memorizes random labels."""

from supple.figures.figure import Figure, Panel, compared
from supple.lab.problems import Scale

METRICS = (
    "spectral_norm",
    "smallest_singular_value",
    "weight_norm",
    "stable_rank",
    "gradient_effective_rank",
)


def panels(scale: Scale, seeds: int) -> list[list[Panel]]:
    data = {"cifar10": 1e-4, "cifar100": 1e-4} | ({"svhn": 1e-3} if scale == "paper" else {})
    runs = {
        each: compared(f"random-label-{each}", scale, seeds, strengths=[strength], diagnostics=METRICS)
        for each, strength in data.items()
    }
    return [[Panel(each, runs[each], metric) for each in data] for metric in METRICS]


FIGURE = Figure(
    title="Figure 14: singular values, weight norms, stable ranks and effective gradient diversity",
    claim="Spectral norm and weight norm grow without regularization; the smallest singular value hardly changes.",
    panels=panels,
)
