"""Figure 1: generalization under three kinds of change on tiny-ImageNet, with a ResNet-18 and a vision transformer."""

from supple.figures.figure import ALL_SCALES, PAPERS_STRENGTHS, SMALLER_NOTE, Figure, Panel, compared, networks
from supple.lab.problems import Scale, title_of

PROBLEMS = ("class-incremental-tiny-imagenet", "label-flip-tiny-imagenet", "pixel-permutation-tiny-imagenet")
REDUCED = PROBLEMS[:2]
"""At reduced scale, pixels are permuted on the sets of Figure 2 alone."""


def panels(scale: Scale, seeds: int) -> list[list[Panel]]:
    return [
        [
            Panel(
                f"{title_of(problem)}, {name}",
                compared(problem, scale, seeds, strengths=[1e-4], model=model),
                "test_accuracy",
            )
            for problem in (REDUCED if scale == "reduced" else PROBLEMS)
        ]
        for name, model in networks(scale).items()
    ]


FIGURE = Figure(
    title="Figure 1: generalization on tiny-ImageNet under three kinds of change",
    claim="Spectral regularization is consistently among the best-performing methods.",
    panels=panels,
    note="the paper's text does not state the tasks and epochs of class-incremental learning and label flip; "
    f"{SMALLER_NOTE}; {PAPERS_STRENGTHS}",
    scales=ALL_SCALES,
)
