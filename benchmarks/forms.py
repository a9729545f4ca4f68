"""What benchmarks compare: methods of the laboratory, each in a form of its own."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from supple.lab.run import Run


@dataclass(frozen=True, kw_only=True)
class Form:
    """A method, with options and an optimizer, and the strengths to try."""

    method: str = "none"
    strengths: tuple[float | None, ...] = (None,)
    """None is the method's default."""
    options: Mapping[str, Any] = field(default_factory=dict)
    optimizer: str = "adam"

    def run(self, problem: str, seed: int, strength: float | None, **changes: Any) -> Run:
        """One network that is trained in this form; ``changes`` are the other arguments of :meth:`Run.of`."""
        return Run.of(
            problem,
            self.method,
            [seed],
            optimizer=self.optimizer,
            strength=strength,
            options=self.options,
            **changes,
        )
