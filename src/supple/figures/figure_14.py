"""Figure 14: diagnostics of a ResNet-18 that memorizes random labels."""

from supple.figures.figure import ALL_SCALES, PAPERS_STRENGTHS, Figure, Panel, compared
from supple.lab.problems import Scale, title_of

METRICS = (
    "spectral_norm",
    "smallest_singular_value",
    "weight_norm",
    "stable_rank",
    "gradient_effective_rank",
)


def panels(scale: Scale, seeds: int) -> list[list[Panel]]:
    strengths = {"random-label-cifar10": 1e-4, "random-label-cifar100": 1e-4}
    if scale == "paper":
        strengths["random-label-svhn"] = 1e-3
    runs = {
        problem: compared(problem, scale, seeds, strengths=[strength], diagnostics=METRICS)
        for problem, strength in strengths.items()
    }
    # At reduced scale gradients of single examples are not measured: they would take too much memory.
    metrics = METRICS[:-1] if scale == "reduced" else METRICS
    return [[Panel(title_of(problem), runs[problem], metric) for problem in strengths] for metric in metrics]


FIGURE = Figure(
    title="Figure 14: singular values, weight norms, stable ranks and effective gradient diversity",
    claim="Spectral norm and weight norm grow without regularization; the smallest singular value hardly changes.",
    panels=panels,
    note=PAPERS_STRENGTHS,
    scales=ALL_SCALES,
)
