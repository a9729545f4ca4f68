"""Diagnostics of one network while it trains."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from supple.diagnostics.measurements import Measurements
from supple.diagnostics.probing import Inputs, Labels, Loss
from supple.diagnostics.table import text_table
from supple.mitigators.hooks import OutermostStep
from supple.mitigators.optimizers import inner_optimizers
from supple.mitigators.states import check_state, check_tensors
from supple.network.graph import unwrapped
from supple.network.population import Population
from supple.network.roles import Overrides


class PlasticityMonitor:
    """Measures a network's diagnostics, on request or every ``every`` optimizer steps, as floats for any logger.

    After a measurement the network, its modes, buffers, gradients and the random state are bit-for-bit unchanged; of
    what it keeps in attributes these are tensors, numbers, lists, dictionaries, sets and deques, not other objects.
    Between measurements it only counts steps. The docstrings of the functions in
    :data:`supple.diagnostics.DIAGNOSTICS` define the diagnostics.

    Args:
        model: a module, or one wrapped by DistributedDataParallel or torch.compile, or a :class:`Population`. Build
            the monitor before training: it copies the current parameters as the initial ones.
        probe: inputs and labels of one fixed batch of some hundred examples, on any device, kept without a copy. Inputs
            are the model's arguments: a tensor, a tuple or a dictionary, with the batch dimension first; for a
            population ``(members, batch, ...)``. Floating-point inputs are cast to the type of the model's parameters
            if these are all bfloat16, all float16 or all float64 (as under Lightning's ``precision="bf16-true"``).
            Labels are what the loss takes, and are not cast. Without labels (None), gradients are not measured; without
            a probe, only the weights are. ``representation_change`` keeps all hidden activations of the probe in memory
            and in the state (4 MB per example for ViT-Tiny on 32x32 images): give few examples for large models, or
            leave it out.
        every: steps between measurements, counted when attached or by calls of :meth:`step`.
        diagnostics: the names of the diagnostics; None for all that the probe allows.
        loss: ``loss(outputs, labels)`` of a batch.
        roles: overrides for :func:`supple.roles.find_roles`, which finds the matrices.
        callback: called with each measurement that a step makes, such as ``wandb.log``. It runs inside the optimizer's
            step: attach and detach methods and monitors only after that.

    Raises:
        TypeError: for a probe that is not a pair, and a loss or a callback that is not a function.
        ValueError: for a period that is not a number of at least 1, a probe without examples, an unknown diagnostic, or
            one that the probe does not allow.

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
        roles: Overrides | None = None,
        callback: Callable[[dict[str, float]], object] | None = None,
    ) -> None:
        if not hasattr(every, "__index__") or every < 1:
            raise ValueError(f"expected to measure every 1 or more steps, got every={every!r}: 1000 is the default")
        for name, function in (("loss", loss), ("callback", callback)):
            if not (callable(function) or (name, function) == ("callback", None)):
                raise TypeError(f"expected a function as {name}, got {type(function).__name__}: pass it uncalled")
        if probe is not None and not (isinstance(probe, tuple | list) and len(probe) == 2):
            raise TypeError(
                f"expected a probe of inputs and labels, got {type(probe).__name__}: pass probe=(inputs, labels), or "
                "(inputs, None)"
            )
        self.model, self.every, self.callback = model, every, callback
        self.latest: dict[str, float] = {}
        """The last measurement."""
        x, y = probe or (None, None)
        self._measurements = Measurements(model, x, y, diagnostics, loss=loss, roles=roles)
        self.diagnostics = self._measurements.names
        """The names of the diagnostics that are measured."""
        self._steps = 0
        self._optimizer: Optimizer | None = None
        self._hooks: list[RemovableHandle] = []
        self._outermost = OutermostStep()

    def measure(self) -> dict[str, float]:
        """Measure all chosen diagnostics now; the result is also kept as :attr:`latest`.

        ``spectral_norm`` is the network's, ``spectral_norm/<layer>`` a layer's. For a population the names are
        ``member0/spectral_norm``, and so on: loggers group by the text before the first slash, so that every member
        has a panel with the names of a single network. Diagnostics that need ``previous``, such as
        ``representation_change``, compare with the last measurement and are absent from the first.
        """
        values = {
            f"{name}/{layer}" if layer else name: value.double()
            for name, by_layer in self._measurements.measure().items()
            for layer, value in by_layer.items()
        }
        rows = torch.stack(list(values.values()), -1).tolist() if values else []
        if isinstance(unwrapped(self.model), Population):
            self.latest = {
                f"member{index}/{key}": value
                for index, row in enumerate(rows)
                for key, value in zip(values, row, strict=True)
            }
        else:
            self.latest = dict(zip(values, rows, strict=True))
        return self.latest

    def attach(self, optimizer: Optimizer) -> Self:
        """Measure after every ``every``-th step of ``optimizer`` from now on.

        Attach methods that change the parameters first: the measurement runs after everything attached before it. It
        also accepts the optimizers that Accelerate and Lightning wrap around torch's. Copy or pickle network, optimizer
        and monitor together: then the copied monitor is attached to the copied optimizer.

        Raises:
            TypeError: if it is not a torch optimizer.
            RuntimeError: if already attached.
        """
        if self._hooks:
            raise RuntimeError("expected a monitor that is not attached yet, got one that is: detach() first")
        self._optimizer = inner_optimizers(optimizer)[-1]  # if there are several, the last one to step
        self._outermost = OutermostStep()
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

    def step(self) -> dict[str, float] | None:
        """Count a training step, and measure after every ``every``-th; for loops that do not attach the monitor.

        Returns:
            The measurement, or None if none is due.

        Raises:
            RuntimeError: if attached, because the step would count twice.
        """
        if self._hooks:
            raise RuntimeError(
                "expected a monitor that is not attached, got one that counts its optimizer's steps: detach() it, "
                "or leave out step()"
            )
        return self._count_step()

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """A copy of the initial weights, the activations at the last measurement and the number of steps."""
        return self._measurements.state_dict() | {"": {"steps": torch.tensor(self._steps)}}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Load what :meth:`state_dict` returned, from a monitor of the same architecture with the same probe.

        Raises:
            TypeError: if it is not such a state; the message names the entry, and nothing changes.
            ValueError: if the parameters differ; nothing changes.
        """
        mine = self.state_dict()
        check_tensors(state, mine, "monitor")
        without: dict[str, Any] = {"previous": {}}  # there are none before the first measurement
        check_state({**state, **without}, mine | without, {}, "monitor")
        self._measurements.load_state_dict(state)
        self._steps = int(state[""]["steps"])

    @property
    def steps(self) -> int:
        """The number of steps that it has counted; attached, it does not count compiled steps."""
        return self._steps

    def __repr__(self) -> str:
        where = f"attached to {type(self._optimizer).__name__}" if self._optimizer is not None else "not attached"
        counted = f"every {self.every} steps, {self._steps} so far"
        return f"PlasticityMonitor({len(self.diagnostics)} diagnostics, {counted}, {where})"

    def table(self) -> str:
        """The latest measurement (or a first one) as text of at most 100 columns; for a population, the members' mean.

        Values of units are in the row of the layer that receives the units.
        """
        latest = self.latest or self.measure()
        if isinstance(unwrapped(self.model), Population):
            members: dict[str, list[float]] = {}
            for key, value in latest.items():
                members.setdefault(key.partition("/")[2], []).append(value)
            latest = {key: sum(values) / len(values) for key, values in members.items()}
        return text_table(latest)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_hooks": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Attach to the copied optimizer again: copying or pickling an optimizer loses its hooks."""
        self.__dict__.update(state)
        if self._optimizer is not None:
            self.attach(self._optimizer)

    def _on_step_start(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._outermost.begins(optimizer)

    def _on_step_end(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._outermost.ends():
            self._count_step()

    def _count_step(self) -> dict[str, float] | None:
        self._steps += 1
        if self._steps % self.every:
            return None
        self.measure()
        if self.callback is not None:
            self.callback(self.latest)
        return self.latest
