"""Figure 2: generalisation while the pixels are permuted, on SVHN, CIFAR-10 and CIFAR-100."""

from supple.figures.figure import QUICK_NOTE, Figure, Panel, compared, networks
from supple.lab.problems import Scale

DATA = {"svhn": 1e-3, "cifar10": 1e-4, "cifar100": 1e-4}
"""The data sets, with the strength that the paper found best for all regularizers (App. B)."""


def panels(scale: Scale, seeds: int) -> list[list[Panel]]:
    data = {each: strength for each, strength in DATA.items() if scale == "paper" or each != "svhn"}
    return [
        [
            Panel(
                f"{each}, {name}",
                compared(f"pixel-permutation-{each}", scale, seeds, strengths=[strength], model=model),
                "test_accuracy",
            )
            for each, strength in data.items()
        ]
        for name, model in networks(scale).items()
    ]


FIGURE = Figure(
    title="Figure 2: generalisation while the pixels are permuted",
    claim="Spectral regularization is effective at maintaining test accuracy on new tasks; without any mitigator both "
    "networks lose test accuracy.",
    panels=panels,
    note=QUICK_NOTE + ", and without SVHN",
)
