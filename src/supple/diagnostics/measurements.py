"""Repeated measurements of one network on one probe."""

from collections.abc import Iterable, Mapping
from functools import partial

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from supple.diagnostics.facts import DIAGNOSTICS, Diagnostic
from supple.diagnostics.inspection import Inspection
from supple.diagnostics.probing import Inputs, Labels, Loss
from supple.errors import known
from supple.network.population import Population
from supple.network.roles import Overrides

Tensors = dict[str, Tensor]


class Measurements:
    """Some diagnostics of a network on a probe, and the earlier states that they compare it with.

    Args:
        network: before training.
        x, y, loss, roles: as for :class:`Inspection`.
        diagnostics: names; None for all that the probe allows, also those that need a previous measurement.

    Raises:
        ValueError: for an unknown diagnostic, or one that the probe does not allow.
    """

    def __init__(
        self,
        network: nn.Module | Population,
        x: Inputs | None,
        y: Labels | None,
        diagnostics: Iterable[str] | None = None,
        *,
        loss: Loss = cross_entropy,
        roles: Overrides | None = None,
    ) -> None:
        self._inspection = partial(Inspection, network, x, y, loss=loss, roles=roles)
        self.initial: Tensors = {}
        """The parameters before training, if a diagnostic needs them."""
        self.previous: Tensors = {}
        """The activations at the last measurement, if a diagnostic needs them."""
        inspection = self._inspect()
        self.names = _chosen(diagnostics, inspection)
        self._needs = {need for name in self.names for need in DIAGNOSTICS[name].needs}
        if "initial" in self._needs:
            self.initial = _copies(inspection.parameters)
        if "gradient_singular_values" in self._needs:
            inspection.check_examples()

    def measure(self) -> dict[str, Tensors]:
        """By diagnostic, its values by layer; without those that lack something, such as a previous measurement."""
        inspection = self._inspect()
        by_layer = {
            name: DIAGNOSTICS[name](inspection)
            for name in self.names
            if all(map(inspection.offers, DIAGNOSTICS[name].needs))
        }
        self.keep(inspection)
        return by_layer

    def keep(self, inspection: Inspection | None = None) -> None:
        """Compare the next measurement with the network as it is now, or as it was inspected."""
        if "previous" in self._needs:
            self.previous = (inspection or self._inspect()).activations

    def state_dict(self) -> dict[str, Tensors]:
        """A copy of the states that the next measurement is compared with."""
        return {"initial": _copies(self.initial), "previous": _copies(self.previous)}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Restore the result of :meth:`state_dict`."""
        self.initial, self.previous = _copies(state["initial"]), _copies(state["previous"])

    def _inspect(self) -> Inspection:
        return self._inspection(initial=self.initial, previous=self.previous or None)


def _chosen(names: Iterable[str] | None, inspection: Inspection) -> tuple[str, ...]:
    """The diagnostics with these names, or all that the probe allows, also those that need a previous measurement."""
    if isinstance(names, str):
        raise ValueError(f"expected a list of diagnostics, got {names!r}: write [{names!r}]")
    chosen = list(DIAGNOSTICS if names is None else (known(str(name), DIAGNOSTICS, "diagnostic") for name in names))
    lacking = {name: _lacking(name, inspection) for name in chosen}
    for name in chosen if names is not None else ():
        if lacking[name]:
            raise ValueError(
                f"expected {lacking[name][0]} for {name}, got none: activations need probe=(inputs, None), "
                "gradients with probe=(inputs, labels) and trainable parameters, singular values with a weight matrix; "
                "or leave that diagnostic out"
            )
    return tuple(name for name in chosen if not lacking[name])


def _lacking(name: str, inspection: Inspection) -> list[str]:
    """The needs of a diagnostic that the inspection cannot offer."""
    diagnostic = DIAGNOSTICS[name]
    if not isinstance(diagnostic, Diagnostic):
        raise TypeError(
            f"expected a Diagnostic as DIAGNOSTICS[{name!r}], got {type(diagnostic).__name__}: add the function with "
            "@supple.diagnostics.diagnostic(title=...)"
        )
    needs = ["activations" if need == "previous" else need for need in diagnostic.needs if need != "initial"]
    return [need for need in needs if not inspection.offers(need)]


def _copies(tensors: Mapping[str, Tensor]) -> Tensors:
    return {name: tensor.clone() for name, tensor in tensors.items()}
