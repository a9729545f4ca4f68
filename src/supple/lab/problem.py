"""What a problem is: data set, shift, and training protocol, at several scales."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Scale = Literal["quick", "reduced", "paper"]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A stream of tasks and the published protocol for learning it."""

    title: str = ""
    """Its name in charts and tables, by :func:`supple.lab.problems.title_of`."""
    summary: str
    dataset: str
    shift: str
    model: str = "mlp"
    optimizer: str = "adam"
    step_size: float = 1e-3
    examples: int | None = None
    """Number of training images, evenly spaced over the data set; None means all."""
    batch_size: int
    epochs: int
    """Epochs per task."""
    tasks: int
    quick: Mapping[str, Any] = field(default_factory=dict)
    """The changes at quick scale, which takes minutes on two cores."""
    reduced: Mapping[str, Any] = field(default_factory=dict)
    """The changes at reduced scale, which takes about six minutes on one core; if empty, there is no such scale."""
    online: bool = False
    """Whether its authors report online accuracy; it is then shown too, and used to choose strengths."""
    published: bool = True
    """Whether there is a published protocol."""

    def protocol(self, scale: Scale) -> dict[str, Any]:
        """The settings of the protocol at a scale: everything that determines a run's numbers."""
        protocol = asdict(self)
        for name in ("title", "summary", "quick", "reduced", "online", "published"):
            del protocol[name]
        changes: dict[Scale, Mapping[str, Any]] = {"quick": self.quick, "reduced": self.reduced, "paper": {}}
        return protocol | dict(changes[scale])

    @property
    def scales(self) -> tuple[Scale, ...]:
        """The scales at which the problem can be run."""
        has: dict[Scale, bool] = {"quick": True, "reduced": bool(self.reduced), "paper": self.published}
        return tuple(scale for scale in has if has[scale])
