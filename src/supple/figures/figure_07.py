"""Figure 7: the exponent k of the spectral penalty, on MNIST and Fashion-MNIST."""

from supple.figures.figure import Figure, Panel
from supple.lab.grid import product
from supple.lab.problems import Scale, title_of

EXPONENTS = {1: 1e-1, 2: 1e-2, 4: 1e-4, 8: 1e-6}
"""Exponents, and the strength that is best for each at paper scale on MNIST (docs/reproduction.md): the larger the
exponent, the steeper the penalty far from one."""


def panels(scale: Scale, seeds: int) -> list[list[Panel]]:
    return [
        [
            Panel(
                title_of(problem),
                [
                    run
                    for exponent, strength in EXPONENTS.items()
                    for run in product(
                        problem,
                        ["spectral"],
                        range(seeds),
                        strengths=[strength] if scale == "paper" else (),
                        scale=scale,
                        options={"exponent": exponent},
                    )
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
    note="each exponent at its best strength on MNIST; at quick scale all at the default strength",
)
