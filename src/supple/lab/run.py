"""The configuration of a run: everything that determines a population's numbers."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any

from supple.diagnostics import DIAGNOSTICS
from supple.errors import is_written_for_users, known, own_frame
from supple.lab import problems
from supple.lab.problems import Scale
from supple.runs.run import BaseRun
from supple.training import methods
from supple.training.optimizers import OPTIMIZERS
from supple.training.precision import MATMUL_PRECISIONS

AUTOCAST = ("bfloat16",)
"""The types for ``torch.autocast``; float16 is left out, because its losses must be scaled."""


@dataclass(frozen=True, kw_only=True)
class Run(BaseRun):
    """A run of the laboratory; a seed determines a member's initial weights, tasks and batches."""

    scale: Scale
    options: str
    """The method's keyword arguments except its strength, as sorted JSON."""
    dataset: str
    examples: int | None
    shift: str
    model: str
    optimizer: str
    step_size: float
    batch_size: int
    epochs: int
    tasks: int
    matmul_precision: str
    """Precision of float32 matrix products in training steps, one of :data:`MATMUL_PRECISIONS`."""
    diagnostics: tuple[str, ...]
    """The diagnostics of the networks at the end of each task."""
    strengths: tuple[float, ...]
    """One per member."""
    autocast: str | None = None
    """The type, one of :data:`AUTOCAST`, that ``torch.autocast`` uses in training steps; None keeps float32."""

    def config(self) -> dict[str, Any]:
        """As in the base class, but without fields that equal their default: older folders keep their names."""
        defaults = {field.name: field.default for field in fields(self) if field.default is not MISSING}
        return {name: value for name, value in super().config().items() if defaults.get(name, MISSING) != value}

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> "Run | None":
        """The run with this configuration, as the store holds it; None if it is of another kind or version."""
        names = {field.name for field in fields(cls)}
        needed = {field.name for field in fields(cls) if field.default is MISSING}
        if not needed <= config.keys() <= names:
            return None
        lists = {name: tuple(value) for name, value in config.items() if isinstance(value, list)}
        return cls(**{**config, **lists})

    @classmethod
    def of(
        cls,
        problem: str,
        method: str,
        seeds: Iterable[int],
        *,
        scale: Scale = "quick",
        strength: float | None = None,
        options: Mapping[str, Any] | None = None,
        matmul_precision: str | None = None,
        autocast: str | None = None,
        diagnostics: Iterable[str] | None = None,
        **changes: Any,
    ) -> "Run":
        """The run of a named method on a named problem; None in ``changes`` keeps the problem's value.

        Raises:
            ValueError: for an unknown name (the message suggests the nearest one), a scale that the problem does not
                have, a strength or an option that the method does not take, or if there is nothing to train.
        """
        protocol = problems.find(problem)
        if scale not in protocol.scales:
            scales = " or ".join(protocol.scales)
            raise ValueError(f"expected {problem} at scale {scales}, got {scale}: choose one of these")
        entry = methods.find(method)
        strength = methods.strength_of(method, entry, strength, entry.strength)
        methods.check_options(method, entry, options)
        seeds = tuple(seeds)
        if diagnostics is None:
            diagnostics = [name for name, diagnostic in DIAGNOSTICS.items() if diagnostic.usual]
        numbers = protocol.protocol(scale)
        for name in numbers:
            known(name, [field.name for field in fields(cls)], f"setting of {problem}")
        run = cls(
            problem=problem,
            method=method,
            scale=scale,
            options=json.dumps(dict(options or {}), sort_keys=True),
            matmul_precision=known(matmul_precision or "highest", MATMUL_PRECISIONS, "precision"),
            autocast=known(autocast, AUTOCAST, "type for autocast") if autocast else None,
            diagnostics=tuple(known(name, DIAGNOSTICS, "diagnostic") for name in diagnostics),
            seeds=seeds,
            strengths=(strength,) * len(seeds),
            **numbers | {name: value for name, value in changes.items() if value is not None},
        )
        run.check_seeds()
        known(run.optimizer, OPTIMIZERS, "optimizer")
        if not (isinstance(run.step_size, int | float) and 0 < run.step_size < math.inf):
            raise ValueError(f"expected a positive step size, got {run.step_size}: leave it out for the problem's")
        counts = {"tasks": run.tasks, "epochs": run.epochs, "images a batch": run.batch_size}
        for what, count in counts.items():
            if not isinstance(count, int) or count < 1:
                raise ValueError(f"expected {what} as a whole number of at least 1, got {count!r}: choose another")
        return replace(run, step_size=float(run.step_size))

    @contextmanager
    def naming_own_parts(self) -> Iterator[None]:
        """In this block, name the user's own parts of the run in errors that torch raises."""
        try:
            yield
        except Exception as error:
            parts = [part for part in (self.dataset, self.shift, self.model, self.method) if ":" in part]
            if is_written_for_users(error) or own_frame(error) or not parts:
                raise
            raise ValueError(
                f"expected {' and '.join(parts)} to work on {self.problem}, got {type(error).__name__}: {error}: "
                "correct it, --traceback shows where"
            ) from error
