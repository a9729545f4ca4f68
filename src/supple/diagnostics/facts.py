"""What a measured quantity is and how to show it, and the table of diagnostics."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

from supple.diagnostics.inspection import Inspection
from supple.network.population import members_of

Function = TypeVar("Function", bound=Callable[..., dict[str, Tensor]])
ByLayer = Mapping[str, Tensor]
"""A quantity by layer, in some diagnostics with the whole network's under ``""``."""


@dataclass(frozen=True)
class Metric:
    """The facts of a measured quantity that charts, tables, the report page and commands show."""

    title: str
    """Its name for people, as on an axis; headings begin it with a capital letter."""
    summary: str = ""
    """What it is, in one line; a diagnostic's is the first line of its function's docstring."""
    _: KW_ONLY
    unit: str = ""
    when: str = ""
    """When it is measured, for the axis over tasks, where this must be said."""
    higher_is_better: bool | None = None
    """Whether more shows a more plastic network; None if neither more nor less does."""
    scale: Literal["linear", "symlog"] = "linear"
    """The scale of its axis: symlog, linear up to one and logarithmic above, if it can grow by powers of ten."""

    @property
    def axis(self) -> str:
        """The title of an axis over tasks."""
        return " ".join(filter(None, [self.title, self.when, f"({self.unit})" * bool(self.unit)]))


@dataclass(frozen=True, kw_only=True)
class Diagnostic:
    """A function of some of an :class:`Inspection`'s attributes that returns values by layer, and its facts."""

    function: Callable[..., dict[str, Tensor]]
    """Its docstring is the definition."""
    metric: Metric
    usual: bool = False
    """Whether the laboratory measures it by default."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The attributes that it is computed from: the function's parameters that have no default.

        ``singular_values`` and ``parameters`` need only the weights; ``activations`` needs probe inputs; ``gradients``
        and ``gradient_singular_values`` need labels too; the caller gives ``initial`` and ``previous``.
        """
        parameters = inspect.signature(self.function).parameters.values()
        return tuple(parameter.name for parameter in parameters if parameter.default is parameter.empty)

    def __call__(self, inspection: Inspection) -> dict[str, Tensor]:
        """The network's value under ``""``, then the layers' values; ``(members…)`` each. Only the gradients of single
        examples wait for the device.

        Raises:
            ValueError: if the inspection was not given what this needs.
        """
        for need in self.needs:
            if not inspection.offers(need):
                raise ValueError(
                    f"expected an inspection with {need} for {self.function.__name__}, got one without: give probe "
                    "inputs for activations, labels and trainable parameters too for gradients, and initial or "
                    "previous themselves"
                )
        by_layer = self.function(*(getattr(inspection, need) for need in self.needs))
        members = members_of(inspection.network)
        values = by_layer.values() if isinstance(by_layer, Mapping) else [by_layer]
        if not (isinstance(by_layer, Mapping) and all(isinstance(v, Tensor) and v.shape == members for v in values)):
            got = ", ".join(str(tuple(v.shape)) if isinstance(v, Tensor) else type(v).__name__ for v in values)
            raise TypeError(
                f"expected {self.function.__name__} to return tensors of shape {members} by layer, got {got}: return "
                '{"": value} for the network alone'
            )
        return by_layer


DIAGNOSTICS: dict[str, Diagnostic] = {}
"""All diagnostics by name, which is also the measurement's name. To compute some of them, one value per member:

``{name: DIAGNOSTICS[name](inspection)[""] for name in names}``.
"""


def diagnostic(
    *,
    title: str,
    higher_is_better: bool | None = None,
    scale: Literal["linear", "symlog"] = "linear",
    usual: bool = False,
) -> Callable[[Function], Function]:
    """Add the function below to :data:`DIAGNOSTICS`. The arguments are fields of :class:`Metric`, and ``usual``."""

    def add(function: Function) -> Function:
        summary = (inspect.getdoc(function) or "").partition("\n")[0]
        metric = Metric(title=title, summary=summary, higher_is_better=higher_is_better, scale=scale)
        DIAGNOSTICS[function.__name__] = Diagnostic(function=function, metric=metric, usual=usual)
        return function

    return add


def means_of(values: ByLayer) -> dict[str, Tensor]:
    """The mean of each ``(members…, n)``, and under ``""`` that of all together."""
    return {"": torch.cat(list(values.values()), -1).mean(-1), **{name: v.mean(-1) for name, v in values.items()}}


def norms_of(vectors: ByLayer) -> dict[str, Tensor]:
    """The norm of each vector ``(members…, n)``, and under ``""`` that of all together."""
    norms = {name: torch.linalg.vector_norm(v, dim=-1, dtype=torch.float64) for name, v in vectors.items()}
    return {"": torch.linalg.vector_norm(torch.stack(list(norms.values()), -1), dim=-1), **norms}
