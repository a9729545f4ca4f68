"""Figure 6: badly scaled weights of two units impede learning; exact, with the example of §3.2."""

import itertools
from collections.abc import Callable, Iterable, Sequence

import altair as alt
import polars as pl
import torch
from torch import Tensor

from supple.figures.figure import arranged
from supple.lab.problems import Scale
from supple.lab.run import Run

TASKS = 10
STEPS = 100
"""Gradient descent steps per task."""
LEARNED = 0.05
"""Tasks count as learned if the mean loss is below this: a tenth of the loss when a target changes."""
STEP_SIZES = (0.003, 0.01, 0.03, 0.1, 0.3)
MAX_STEPS = 100_000
"""The number of steps after which :func:`steps_to_learn` gives up."""


def loss(w1: Tensor, w2: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """½ (w₂ ReLU(w₁ x) − y)², summed over the examples.

    Args:
        w1: ``(..., 2, 2)``.
        w2: ``(..., 2)``.
        x: ``(examples, 2)``.
        y: ``(examples,)``.
    """
    outputs = (w2.unsqueeze(-2) * (x @ w1.mT).relu()).sum(-1)
    return 0.5 * (outputs - y).square().sum(-1)


def solution(c: Tensor) -> tuple[Tensor, Tensor]:
    """A.1: weights whose output is 1 for both inputs for any c; w₁ has rank one and the singular value c + 1/c."""
    one = torch.ones_like(c)
    w1 = torch.stack([torch.stack([-one, c], -1), torch.stack([1 / c, -one], -1)], -2)
    return w1, torch.stack([1 / c, c], -1)


def continual_loss(c: Tensor, step_size: float) -> Tensor:
    """The mean loss at the ends of ``TASKS`` tasks; the first input's target is 0, 1, 0, 1, ...

    Gradient descent on both examples, starting from the solution. The curvature grows as c². A step size too large for
    it kills the unit: from then on the loss is 0 where the target is 0, and ½ where it is 1.
    """
    w1, w2 = solution(c)
    x, losses = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).to(c), []
    for task in range(TASKS):
        y = torch.tensor([float(task % 2), 1.0]).to(c)
        w1, w2 = _descended(w1, w2, x, y, step_size, STEPS)
        losses.append(loss(w1, w2, x, y))
    return torch.stack(losses).mean(0)


def steps_to_learn(a: Tensor, step_size: float) -> Tensor:
    """§3.2: the number of steps until the loss of the second task is below a tenth of its initial value.

    The first task's solution is θ₁ = diag(1, a), θ₂ = (0, a), with condition number 1/a; the second task is
    x = (0, 1), y = 1. The paper says that this takes Θ(1/a) steps. But both weights grow by a constant factor per
    step, so it takes Θ(log 1/a).
    """
    zero, one = torch.zeros_like(a), torch.ones_like(a)
    w1, w2 = torch.diag_embed(torch.stack([one, a], -1)), torch.stack([zero, a], -1)
    x, y = torch.tensor([[0.0, 1.0]]).to(a), torch.tensor([1.0]).to(a)
    first, needed = loss(w1, w2, x, y), torch.full_like(a, MAX_STEPS)
    for step in range(MAX_STEPS):
        needed[(loss(w1, w2, x, y) < 0.1 * first) & (needed == MAX_STEPS)] = step
        if (needed < MAX_STEPS).all():
            break
        w1, w2 = _descended(w1, w2, x, y, step_size, 1)
    return needed


def _descended(w1: Tensor, w2: Tensor, x: Tensor, y: Tensor, step_size: float, steps: int) -> tuple[Tensor, Tensor]:
    for _ in range(steps):
        w1, w2 = w1.detach().requires_grad_(), w2.detach().requires_grad_()
        g1, g2 = torch.autograd.grad(loss(w1, w2, x, y).sum(), (w1, w2))
        w1, w2 = w1.detach() - step_size * g1, w2.detach() - step_size * g2
    return w1, w2


class Example:
    """Two charts that need no training runs."""

    title = "Figure 6: a large spectral norm impedes learning in a network of two units"
    claim = "A lower spectral norm is more trainable across different step sizes."
    scales: Sequence[Scale] = ("quick", "paper")

    def runs(self, scale: Scale, seeds: int) -> list[Run]:
        """No runs."""
        return []

    def draw(self, rows_of: Callable[[Iterable[Run]], pl.DataFrame], scale: Scale, seeds: int) -> alt.VConcatChart:
        """The charts, exact at both scales."""
        return arranged([[_learned(), _steps()]], self.title, "exact: no randomness, no scale")


def _learned() -> alt.Chart:
    c = torch.logspace(0, 1.5, 241, dtype=torch.float64)
    norms = (c + 1 / c).tolist()
    rows = []
    for step_size in STEP_SIZES:
        cells = zip(norms[:-1], norms[1:], (continual_loss(c, step_size) < LEARNED).tolist(), strict=False)
        for is_learned, run in itertools.groupby(cells, key=lambda cell: cell[2]):
            ends = [*run]
            if is_learned:
                rows.append({"step size": f"{step_size:g}", "from": ends[0][0], "to": ends[-1][1]})
    x = alt.X("from:Q", title="spectral norm c + 1/c of the first layer").scale(domain=[min(norms), max(norms)])
    y = alt.Y("step size:N", sort=[f"{step_size:g}" for step_size in STEP_SIZES])
    title = f"A.1: norms at which {TASKS} tasks of {STEPS} steps are learned"
    return _drawn(alt.Chart(pl.DataFrame(rows)).mark_bar(height=10), title, x, y, list(rows[0])).encode(x2="to:Q")


def _steps() -> alt.Chart:
    a = torch.logspace(-0.5, -6, 23, dtype=torch.float64)
    rows = [
        {"step size": f"{step_size:g}", "condition": condition, "steps": steps}
        for step_size in STEP_SIZES
        for condition, steps in zip((1 / a).tolist(), steps_to_learn(a, step_size).tolist(), strict=True)
    ]
    y = alt.Y("steps:Q", title="steps to a tenth of the loss").scale(type="log", nice=False, padding=8)
    x = alt.X("condition:Q", title="condition number 1/a of the first layer")
    title = "§3.2: the next task after a badly conditioned solution"
    return _drawn(alt.Chart(pl.DataFrame(rows)).mark_line(), title, x, y.axis(format="~s"), list(rows[0]))


def _drawn(chart: alt.Chart, title: str, x: alt.X, y: alt.Y, tooltip: list[str]) -> alt.Chart:
    names = [f"{step_size:g}" for step_size in STEP_SIZES]
    drawn: alt.Chart = chart.encode(
        x=x.scale(type="log", nice=False, padding=8).axis(format="~s", tickCount=6),
        y=y,
        color=alt.Color("step size:N", sort=names).scale(domain=names, scheme="viridis"),
        tooltip=tooltip,
    ).properties(width=320, height=240, title=alt.Title(title, anchor="start"))
    return drawn


FIGURE = Example()
