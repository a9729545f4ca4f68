"""Figure 12: random labels on MNIST for an increasing number of epochs per task, without and with LayerNorm."""

from supple.figures.figure import DEFAULT_STRENGTHS, EPOCHS, Figure, Panel, compared
from supple.lab.problems import Scale


def panels(scale: Scale, seeds: int) -> list[list[Panel]]:
    return [
        [
            Panel(
                f"{epochs} epochs a task, {name}",
                compared("random-label-mnist", scale, seeds, model=model, epochs=epochs),
            )
            for epochs in EPOCHS[scale]
        ]
        for name, model in (("no LayerNorm", "mlp"), ("LayerNorm", "mlp-layer-norm"))
    ]


FIGURE = Figure(
    title="Figure 12: random labels on MNIST for more and more epochs a task",
    claim="Without LayerNorm spectral regularization maintains trainability over other regularizers even when epochs "
    "are few; with LayerNorm it also improves the first task.",
    panels=panels,
    note=DEFAULT_STRENGTHS,
)
