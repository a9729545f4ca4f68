"""Figure 9: a ResNet-18 and a vision transformer that memorize random labels of tiny-ImageNet."""

from supple.figures.figure import PAPERS_STRENGTHS, SMALLER_NOTE, Figure, Panel, compared, networks
from supple.lab.problems import Scale


def panels(scale: Scale, seeds: int) -> list[list[Panel]]:
    return [
        [
            Panel(name, compared("random-label-tiny-imagenet", scale, seeds, strengths=[1e-4], model=model))
            for name, model in networks(scale).items()
        ]
    ]


FIGURE = Figure(
    title="Figure 9: random labels on tiny-ImageNet",
    claim="The vision transformer can't memorize random labels even of a single task.",
    panels=panels,
    note=f"{SMALLER_NOTE}; {PAPERS_STRENGTHS}",
)
