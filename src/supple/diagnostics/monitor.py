"""Diagnostics of one network while it trains."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from supple.diagnostics.inspection import DIAGNOSTICS, Diagnostic, Inspection
from supple.diagnostics.probing import Inputs, Labels, Loss
from supple.diagnostics.table import text_table
from supple.errors import known
from supple.mitigators.optimizers import inner_optimizers, steps_under_way
from supple.network.find_roles import Kind, Role
from supple.network.graph import unwrapped
from supple.network.population import Population


class PlasticityMonitor:
    """Measures a network's diagnostics, when asked or every so many steps of an optimizer, as floats for any logger.

    A measurement leaves the network, its modes, buffers, gradients and the random state as it found them, to the bit.
    Between measurements nothing happens but counting steps. The definitions are the docstrings of the functions in
    :data:`supple.diagnostics.DIAGNOSTICS`.

    Args:
        model: a module, wrapped by DistributedDataParallel or torch.compile or not, or a :class:`Population`. Build
            the monitor before training: it takes the parameters as it finds them for the initial ones.
        probe: inputs and labels of a fixed batch, on any device, which stays the same: some hundred examples. Inputs
            are what the model is called with, a tensor, a tuple or a dictionary, the batch first; for a population
            ``(members, batch, ...)``. Labels are what the loss takes, and may be None: then there are no gradient
            diagnostics. Without a probe there are those of the weights alone.
        every: steps from one measurement to the next, once attached.
        diagnostics: which ones, by name; None for all that the probe allows.
        loss: ``loss(outputs, labels)`` of a batch.
        roles: overrides for :func:`supple.roles.find_roles`, which finds the matrices.
        callback: called with each measurement that the optimizer's steps bring about, such as ``wandb.log``.

    Raises:
        TypeError: for a probe that is no pair, and a loss or a callback that is no function.
        ValueError: for a period that is no number from 1 on, a probe without examples, an unknown diagnostic, or one
            that the probe does not allow.

    >>> monitor = PlasticityMonitor(nn.Linear(2, 2))
    >>> sorted(monitor.measure())[:3]
    ['condition_number', 'condition_number/weight', 'distance_from_initialization']
    """

    def __init__(
        self,
        model: nn.Module | Population,
        probe: tuple[Inputs, Labels | None] | None = None,
        *,
        every: int = 1000,
        diagnostics: Iterable[str] | None = None,
        loss: Loss = cross_entropy,
        roles: Mapping[str, Kind | Role | None] | None = None,
        callback: Callable[[dict[str, float]], object] | None = None,
    ) -> None:
        if not hasattr(every, "__index__") or every < 1:
            raise ValueError(f"expected to measure every 1 or more steps, got every={every!r}: 1000 is the default")
        for name, function in (("loss", loss), ("callback", callback)):
            if not (callable(function) or (name, function) == ("callback", None)):
                raise TypeError(f"expected a function as {name}, got {type(function).__name__}: pass it uncalled")
        if probe is not None and not (isinstance(probe, tuple | list) and len(probe) == 2):
            raise TypeError(
                f"expected a probe of inputs and labels, got {type(probe).__name__}: say probe=(inputs, labels), or "
                "(inputs, None)"
            )
        self.model, self.every, self.callback = model, every, callback
        self.latest: dict[str, float] = {}
        """The last measurement."""
        self._probe, self._loss, self._roles = probe or (None, None), loss, roles
        self._steps = 0
        self._optimizer: Optimizer | None = None
        self._hooks: list[RemovableHandle] = []
        self._depth = 0
        self._initial: dict[str, Tensor] = {}
        self._previous: dict[str, Tensor] = {}
        inspection = self._inspect()
        self.diagnostics = _chosen(diagnostics, inspection)
        """The names of those that are measured."""
        needs = self._needs()
        if "initial" in needs:
            self._initial = {name: vector.clone() for name, vector in inspection.parameters.items()}
        if "gradient_singular_values" in needs:
            inspection.check_examples()

    def measure(self) -> dict[str, float]:
        """All chosen diagnostics now, kept as :attr:`latest`.

        ``spectral_norm`` is the network's, ``spectral_norm/<layer>`` a layer's. For a population each is
        ``member0/spectral_norm``, and so on: a logger groups by what is before the first slash, so that every member
        has a panel with the names of a lone network. ``representation_change``, and whatever else needs ``previous``,
        is since the last measurement, and so absent from the first.
        """
        inspection = self._inspect()
        found = {
            f"{name}/{layer}" if layer else name: value.double()
            for name in self.diagnostics
            if all(map(inspection.offers, DIAGNOSTICS[name].needs))
            for layer, value in DIAGNOSTICS[name](inspection).items()
        }
        rows = torch.stack(list(found.values()), -1).tolist() if found else []
        if isinstance(inspection.network, Population):
            self.latest = {
                f"member{index}/{key}": value
                for index, row in enumerate(rows)
                for key, value in zip(found, row, strict=True)
            }
        else:
            self.latest = dict(zip(found, rows, strict=True))
        if "previous" in self._needs():
            self._previous = inspection.activations
        return self.latest

    def attach(self, optimizer: Optimizer) -> Self:
        """Measure after every ``every``-th step of ``optimizer`` from now on.

        It comes after what was attached before it: methods that change the parameters are to be attached first. The
        optimizers that Accelerate and Lightning wrap around torch's will do. Copy or pickle network, optimizer and
        monitor together and the three copies belong together as the originals do.

        Raises:
            TypeError: for anything but a torch optimizer.
            RuntimeError: when attached already.
        """
        if self._hooks:
            raise RuntimeError("expected a monitor that is not attached yet, got one that is: detach() first")
        self._optimizer = inner_optimizers(optimizer)[-1]  # the last to step, where it holds several
        self._depth = 0
        self._hooks = [
            self._optimizer.register_step_pre_hook(self._on_step_start),
            self._optimizer.register_step_post_hook(self._on_step_end),
        ]
        return self

    def detach(self) -> Self:
        """Undo :meth:`attach`."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._optimizer = [], None
        return self

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """A copy of the initial weights, the activations at the last measurement and the number of steps."""
        return {
            "initial": {name: vector.clone() for name, vector in self._initial.items()},
            "previous": {name: h.clone() for name, h in self._previous.items()},
            "": {"steps": torch.tensor(self._steps)},
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take over what :meth:`state_dict` returned, from a monitor of the same architecture with the same probe.

        Raises:
            TypeError: for what is no such state, naming the entry; nothing is changed then.
            ValueError: when the parameters are others; nothing is changed then.
        """
        _check_state(state)
        mine, theirs = _shapes(self._initial), _shapes(state["initial"])
        if mine != theirs:
            name = min(name for name in mine | theirs if mine.get(name) != theirs.get(name))
            raise ValueError(
                f"expected a state with {name} of size {mine.get(name)}, got {theirs.get(name)}: load it into a "
                "monitor of the same architecture"
            )
        self._initial = {name: vector.clone() for name, vector in state["initial"].items()}
        self._previous = {name: h.clone() for name, h in state["previous"].items()}
        self._steps = int(state[""]["steps"])

    @property
    def steps(self) -> int:
        """How many steps of the optimizer it has counted; compiled steps do not count."""
        return self._steps

    def __repr__(self) -> str:
        where = f"attached to {type(self._optimizer).__name__}" if self._optimizer is not None else "not attached"
        counted = f"every {self.every} steps, {self._steps} so far"
        return f"PlasticityMonitor({len(self.diagnostics)} diagnostics, {counted}, {where})"

    def table(self) -> str:
        """The latest measurement, or a first one, as a text of at most 100 columns; a population's is its mean.

        Units are in the row of the layer that they enter.
        """
        latest = self.latest or self.measure()
        if isinstance(unwrapped(self.model), Population):
            members: dict[str, list[float]] = {}
            for key, value in latest.items():
                members.setdefault(key.partition("/")[2], []).append(value)
            latest = {key: sum(each) / len(each) for key, each in members.items()}
        return text_table(latest)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_hooks": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """An optimizer leaves its hooks behind when it is copied or pickled; this one is hung on the copy again."""
        self.__dict__.update(state)
        if self._optimizer is not None:
            self.attach(self._optimizer)

    def _needs(self) -> set[str]:
        return {need for name in self.diagnostics for need in DIAGNOSTICS[name].needs}

    def _inspect(self) -> Inspection:
        x, y = self._probe
        previous = self._previous or None
        return Inspection(
            self.model, x, y, loss=self._loss, initial=self._initial, previous=previous, roles=self._roles
        )

    def _on_step_start(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # Torch runs the hooks around super().step() too, where a class of one's own calls that within its step().
        if self._depth:
            self._depth = steps_under_way(optimizer) - 1  # fewer where a step ended by an error
        self._depth += 1

    def _on_step_end(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._depth -= 1
        if self._depth:
            return
        self._steps += 1
        if self._steps % self.every == 0:
            self.measure()
            if self.callback is not None:
                self.callback(self.latest)


def _chosen(names: Iterable[str] | None, inspection: Inspection) -> tuple[str, ...]:
    """These diagnostics, or all that the probe allows; the first measurement will be the previous one to the second."""
    if isinstance(names, str):
        raise ValueError(f"expected a list of diagnostics, got {names!r}: write [{names!r}]")
    chosen = list(DIAGNOSTICS if names is None else (known(str(name), DIAGNOSTICS, "diagnostic") for name in names))
    lacking = {name: _lacking(name, inspection) for name in chosen}
    for name in chosen if names is not None else ():
        if lacking[name]:
            raise ValueError(
                f"expected {lacking[name][0]} for {name}, got none: activations are had with probe=(inputs, None), "
                "gradients with probe=(inputs, labels) and trainable parameters, singular values with a weight matrix"
            )
    return tuple(name for name in chosen if not lacking[name])


def _lacking(name: str, inspection: Inspection) -> list[str]:
    """What a diagnostic needs of which there is none."""
    diagnostic = DIAGNOSTICS[name]
    if not isinstance(diagnostic, Diagnostic):
        raise TypeError(
            f"expected a Diagnostic as DIAGNOSTICS[{name!r}], got {type(diagnostic).__name__}: say "
            f"Diagnostic(function, needs)"
        )
    needs = ["activations" if need == "previous" else need for need in diagnostic.needs if need != "initial"]
    return [need for need in needs if not inspection.offers(need)]


def _check_state(state: Any) -> None:
    """Make sure that it is what :meth:`PlasticityMonitor.state_dict` returns."""
    if not isinstance(state, Mapping):
        raise TypeError(f"expected the state_dict() of a monitor, got {type(state).__name__}: load what it returned")
    for part in ("initial", "previous", ""):
        entry = state.get(part)
        tensors = entry.items() if isinstance(entry, Mapping) else [("...", entry)]
        wrong = {name: tensor for name, tensor in tensors if not isinstance(tensor, Tensor)}
        if part == "":
            steps = dict(tensors).get("steps")
            if not isinstance(steps, Tensor) or steps.ndim or steps.dtype != torch.int64:
                wrong = {"steps": steps}
        for name, tensor in wrong.items():
            got = (
                f"one of {tensor.dtype} and shape {tuple(tensor.shape)}"
                if isinstance(tensor, Tensor)
                else type(tensor).__name__
            )
            raise TypeError(
                f"expected a tensor for {part}/{name} in the state of a monitor, got {got}: load what its "
                "state_dict() returned"
            )


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
