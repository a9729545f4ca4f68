"""Reads TensorBoard events."""

from pathlib import Path

import pytest


def scalars(folder: Path) -> list[tuple[str, int, float]]:
    """The name, step and value of each scalar in a folder of events."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = event_accumulator.EventAccumulator(str(folder), {"scalars": 0}).Reload()
    return [(name, event.step, event.value) for name in events.Tags()["scalars"] for event in events.Scalars(name)]
