"""Figure 2: generalization while the pixels are permuted, on SVHN, CIFAR-10 and CIFAR-100."""

from supple.figures.figure import ALL_SCALES, PAPERS_STRENGTHS, SMALLER_NOTE, Figure, Panel, compared, networks
from supple.lab.problems import Scale, title_of

STRENGTHS = {"pixel-permutation-svhn": 1e-3, "pixel-permutation-cifar10": 1e-4, "pixel-permutation-cifar100": 1e-4}
"""For each problem, the strength that the paper found best for all regularizers (App. B)."""


def panels(scale: Scale, seeds: int) -> list[list[Panel]]:
    problems = [problem for problem in STRENGTHS if scale == "paper" or problem != "pixel-permutation-svhn"]
    return [
        [
            Panel(
                f"{title_of(problem)}, {name}",
                compared(problem, scale, seeds, strengths=[STRENGTHS[problem]], model=model),
                "test_accuracy",
            )
            for problem in problems
        ]
        for name, model in networks(scale).items()
    ]


FIGURE = Figure(
    title="Figure 2: generalization while the pixels are permuted",
    claim="Spectral regularization is effective at maintaining test accuracy on new tasks; without any mitigator both "
    "networks lose test accuracy.",
    panels=panels,
    note=f"{SMALLER_NOTE}, and without SVHN; {PAPERS_STRENGTHS}",
    scales=ALL_SCALES,
)
