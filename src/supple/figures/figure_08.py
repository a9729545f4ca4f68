"""Figure 8: loss of plasticity on Fashion-MNIST with LayerNorm, for an increasing number of epochs per task."""

from supple.figures.figure import DEFAULT_STRENGTHS, EPOCHS, Figure, Panel, compared
from supple.lab.problems import Scale


def panels(scale: Scale, seeds: int) -> list[list[Panel]]:
    return [
        [
            Panel(
                f"{epochs} epochs a task",
                compared("random-label-fashion-mnist", scale, seeds, model="mlp-layer-norm", epochs=epochs),
            )
            for epochs in EPOCHS[scale]
        ]
    ]


FIGURE = Figure(
    title="Figure 8: random labels on Fashion-MNIST, with LayerNorm",
    claim="Loss of plasticity occurs without regularization although all networks use LayerNorm, even with more "
    "iterations.",
    panels=panels,
    note=DEFAULT_STRENGTHS,
)
