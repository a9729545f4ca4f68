"""Figure 7: the exponent k of the spectral penalty, on MNIST and Fashion-MNIST."""

from supple.figures.figure import Figure, Panel
from supple.lab.grid import product
from supple.lab.problems import Scale, title_of

EXPONENTS = (1, 2, 4, 8)


def panels(scale: Scale, seeds: int) -> list[list[Panel]]:
    return [
        [
            Panel(
                title_of(problem),
                [
                    run
                    for exponent in EXPONENTS
                    for run in product(problem, ["spectral"], range(seeds), scale=scale, options={"exponent": exponent})
                ],
                series="options",
            )
            for problem in ("random-label-fashion-mnist", "random-label-mnist")
        ]
    ]


FIGURE = Figure(
    title="Figure 7: the exponent k of the spectral penalty",
    claim="k = 2 balances stability with effectiveness.",
    panels=panels,
)
