"""Figure 15: generalization on Continual ImageNet, with two classes per task."""

from supple.figures.figure import DEFAULT_STRENGTHS, Figure, Panel
from supple.lab.grid import product
from supple.lab.problems import Scale, title_of

METHODS = ("none", "l2", "l2-init", "spectral")


def panels(scale: Scale, seeds: int) -> list[list[Panel]]:
    runs = product("continual-imagenet", METHODS, range(seeds), scale=scale)
    # After each task, as in Kumar et al.'s code; the default period is ten tasks.
    runs += product("continual-imagenet", ["redo"], range(seeds), scale=scale, options={"every": 100})
    return [[Panel(title_of("continual-imagenet"), runs, "test_accuracy")]]


FIGURE = Figure(
    title="Figure 15: generalization on Continual ImageNet",
    claim="All regularizers achieve high generalization performance across tasks.",
    panels=panels,
    note=DEFAULT_STRENGTHS,
)
