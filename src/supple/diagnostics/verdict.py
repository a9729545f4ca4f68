"""What a plasticity test found: paired differences, a verdict and one sentence."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

AS_IT_IS = "the network and its optimizer"
FRESH_OPTIMIZER = "the network, a fresh optimizer"
FRESH_NETWORK = "a fresh network"

Verdict = Literal["network", "optimizer", "nothing", "undecided"]


class Difference(NamedTuple):
    """The mean of paired differences, and its interval from ``low`` to ``high`` by Student's t."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Tensor, confidence: float = 0.95) -> "Difference":
        count = len(values)
        half = _student(confidence, count - 1) * values.std() / math.sqrt(count)
        return cls(values.mean().item(), (values.mean() - half).item(), (values.mean() + half).item())


@dataclass(frozen=True, eq=False)
class PlasticityTest:
    """The result of :func:`supple.plasticity_test`; ``print`` shows the verdict in one sentence, then a table."""

    curves: Mapping[str, Tensor]
    """The loss before each step by copy, ``(repeats, steps)``: the network and its optimizer, the network with a fresh
    optimizer, a fresh network, then the remedies."""
    margin: float
    """As a fraction of what the fresh network learns."""

    @cached_property
    def verdict(self) -> Verdict:
        """``"network"``, ``"optimizer"``, ``"nothing"`` or ``"undecided"``."""
        return self.verdict_at(0.95)

    @cached_property
    def differences(self) -> dict[str, Difference]:
        """Of the results, with 95 % intervals.

        ===============  ========================================================================
        ``"network"``    the network above a fresh one, both with a fresh optimizer
        ``"optimizer"``  the network with its own optimizer above the network with a fresh one
        ``"both"``       the network with its own optimizer above a fresh network with a fresh one
        a remedy's name  the network after the remedy above a fresh one, both with a fresh optimizer
        ===============  ========================================================================
        """
        return {name: Difference.of(values) for name, values in self._pairs.items()}

    @property
    def threshold(self) -> float:
        """The margin in units of the loss."""
        learned = self._learned.mean().item()
        return self.margin * max(learned, 0.0) if math.isfinite(learned) else 0.0

    def verdict_at(self, confidence: float) -> Verdict:
        """The verdict by intervals of this confidence."""
        matters = self.threshold
        network, optimizer, both, *_ = (Difference.of(values, confidence) for values in self._pairs.values())
        if not Difference.of(self._learned, confidence).low > 0:  # also if it is not a number
            return "undecided"
        if network.low > matters and both.low > matters:
            return "network"
        if optimizer.low > matters and (network.high <= matters or network.high < optimizer.low):
            return "optimizer"
        if both.high <= matters:
            return "nothing"
        return "undecided"

    def sentence(self) -> str:
        """The verdict, with the numbers that decide."""
        own, renewed, fresh = (self._shown(self.results[name].mean().item()) for name in _COMPARED)
        network, optimizer, both = (self._interval(self.differences[name]) for name in ("network", "optimizer", "both"))
        stalls = (
            f"the network's loss ends at {own} with its own optimizer and at {renewed} with a fresh one (difference "
            f"{optimizer})"
        )
        if self.verdict == "network":
            also = f"; the optimizer stalls too: {stalls}" if self.differences["optimizer"].low > self.threshold else ""
            return (
                f"the network has lost plasticity: its loss ends at {renewed}, a fresh network's at {fresh} "
                f"(difference {network}){also}"
            )
        if self.verdict == "optimizer":
            return f"the optimizer is stalling: {stalls}; a fresh network's at {fresh}"
        if self.verdict == "nothing":
            lost = "little" if self.differences["both"].low > 0 else "nothing"
            ahead = self.differences["both"].high < -self.threshold
            known = "; it starts ahead because it knows part of this already: test on data that need something new"
            harder = "; if its loss was lower before, the data are harder now"
            return (
                f"{lost} is lost: the network's loss ends at {own}, a fresh one's at {fresh} (difference {both}; "
                f"the limit is {self._shown(self.threshold)}, {100 * self.margin:g} % of what a fresh one learns)"
                f"{self._slower() or (known if ahead else harder)}"
            )
        if not Difference.of(self._learned).low > 0:
            steps, first = self.curves[FRESH_NETWORK].shape[1], self.curves[FRESH_NETWORK][:, 0].mean().item()
            return (
                f"undecided: a fresh network does not learn either ({self._shown(first)} to {fresh} in {steps} steps); "
                "use more steps, and check the learning rate"
            )
        if self.differences["both"].low > self.threshold and all(
            self.differences[name].high <= self.threshold for name in ("network", "optimizer")
        ):
            return (
                f"undecided: something is lost (the network's loss ends at {own} with its own optimizer, a fresh "
                f"network's at {fresh}, difference {both}; the limit is {self._shown(self.threshold)}), but neither by "
                f"the network (difference {network}) nor by the optimizer (difference {optimizer}) alone"
            )
        more = "; use more repeats, or more steps if the fresh network is still learning"
        return (
            f"undecided: {stalls}, a fresh network's at {fresh} (difference {network}; the limit is "
            f"{self._shown(self.threshold)}){self._slower() or more}"
        )

    def _slower(self) -> str:
        """Whether the network learns more slowly than a fresh one, by the mean loss over all steps; "" if it does not.

        With enough steps both may reach the same loss.
        """
        own, fresh = (self.curves[name].mean(1) for name in (AS_IT_IS, FRESH_NETWORK))
        if not Difference.of(own - fresh).low > self.threshold:
            return ""
        mine, theirs, steps = (
            self._shown(own.mean().item()),
            self._shown(fresh.mean().item()),
            len(self.curves[AS_IT_IS][0]),
        )
        return (
            f"; but it learns more slowly: its mean loss over all {steps} steps is {mine}, a fresh one's {theirs}; "
            "if you train for fewer steps on new data, test with that many"
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        return {
            "verdict": self.verdict,
            "sentence": self.sentence(),
            "margin": self.margin,
            "threshold": self.threshold,
            "differences": {name: difference._asdict() for name, difference in self.differences.items()},
            "curves": {name: curve.tolist() for name, curve in self.curves.items()},
        }

    def chart(self) -> Any:
        """The mean loss of each copy while it trains, as an Altair chart.

        Raises:
            ImportError: without Altair, which ``pip install '.[lab]'`` in the clone brings.
        """
        import altair as alt

        width = max(1, self.curves[FRESH_NETWORK].shape[1] // 50)  # averages of a few steps: single batches are noise
        rows = [
            {"copy": name, "step": (index + 0.5) * width, "loss": part.mean().item()}
            for name, curve in self.curves.items()
            for index, part in enumerate(curve.split(width, dim=1))
        ]
        return (
            alt.Chart({"values": rows}, title=self.sentence().partition(":")[0].capitalize())
            .mark_line(strokeWidth=2)
            .encode(
                x=alt.X("step:Q", title="training step"),
                y=alt.Y("loss:Q", title="training loss", scale=alt.Scale(zero=False)),
                color=alt.Color("copy:N", title=None, sort=list(self.curves), legend=alt.Legend(orient="bottom")),
            )
            .properties(width=480, height=300)
        )

    def __str__(self) -> str:
        repeats, steps = self.curves[FRESH_NETWORK].shape
        rows = [(f"{steps} steps, {repeats} repeats", "first loss", "last loss", "minus a fresh network's (95 %)")]
        for name, curve in self.curves.items():
            first, last = (self._shown(values.mean().item()) for values in (curve[:, 0], self.results[name]))
            above = self.differences.get({AS_IT_IS: "both", FRESH_OPTIMIZER: "network"}.get(name, name))
            rows.append((name, first, last, self._interval(above) if above else ""))
        width = max(len(row[0]) for row in rows)
        lines = (f"{name:{width}}  {first:>10}  {last:>9}  {above}".rstrip() for name, first, last, above in rows)
        return "\n".join([f"{self.sentence()[0].upper()}{self.sentence()[1:]}.", "", *lines])

    def _shown(self, value: float) -> str:
        """A loss, rounded to the decimals of two significant digits of the threshold."""
        decimals = 2 if not self.threshold else max(0, 1 - math.floor(math.log10(self.threshold)))
        return f"{round(value, decimals) + 0.0:.{decimals}f}"  # no minus before zero

    def _interval(self, difference: Difference) -> str:
        return f"{self._shown(difference.mean)}, 95 % {self._shown(difference.low)} to {self._shown(difference.high)}"

    @cached_property
    def results(self) -> dict[str, Tensor]:
        """By copy, the mean loss over the last tenth of the steps, ``(repeats,)``.

        A result is at most the larger of the copy's and the fresh network's first loss, also if the copy diverges: the
        worst that counts is learning nothing. If the copy's first loss is not finite, the fresh network's is the limit.
        """
        first = self.curves[FRESH_NETWORK][:, 0]
        return {
            name: torch.minimum(
                curve[:, -max(1, curve.shape[1] // 10) :].mean(1).nan_to_num(math.inf),
                torch.where(curve[:, 0].isfinite(), torch.maximum(curve[:, 0], first), first),
            )
            for name, curve in self.curves.items()
        }

    @cached_property
    def _pairs(self) -> dict[str, Tensor]:
        own, renewed, fresh = (self.results[name] for name in _COMPARED)
        remedies = {name: values - fresh for name, values in self.results.items() if name not in _COMPARED}
        return {"network": renewed - fresh, "optimizer": own - renewed, "both": own - fresh, **remedies}

    @cached_property
    def _learned(self) -> Tensor:
        return self.curves[FRESH_NETWORK][:, 0] - self.results[FRESH_NETWORK]


_COMPARED = (AS_IT_IS, FRESH_OPTIMIZER, FRESH_NETWORK)
RESERVED = (*_COMPARED, "network", "optimizer", "both")
"""The names of the compared copies and of their differences, which no remedy can have."""


@cache
def _student(confidence: float, freedom: int) -> float:
    """The half-width of Student's t interval, in standard errors.

    With t = √ν tan α the density is proportional to cos(α)^(ν−1); its integral is found as a sum.
    """
    angle = torch.linspace(0, math.pi / 2, 20_001, dtype=torch.float64)
    integral = torch.cumulative_trapezoid(angle.cos() ** (freedom - 1), angle)
    end = int(torch.searchsorted(integral, wanted := confidence * integral[-1]))
    low, high = integral[end - 1 : end + 1].tolist()
    share = (wanted.item() - low) / (high - low)
    return math.sqrt(freedom) * math.tan(torch.lerp(angle[end], angle[end + 1], share).item())
