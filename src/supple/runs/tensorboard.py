"""The rows of the store as TensorBoard events."""

import shutil
from importlib.util import find_spec
from pathlib import Path

import polars as pl

from supple.runs.store import check_writable


def check(folder: str) -> None:
    """Make sure, before hours of training, that TensorBoard is installed and can write there."""
    if find_spec("tensorboard") is None:
        raise ValueError("expected the package tensorboard, got none: pip install tensorboard")
    check_writable(folder)


def mirror(rows: pl.DataFrame, folder: str | Path) -> None:
    """Write what :func:`supple.runs.store.load` gives, each member as a run and each metric as a scalar over tasks.

    Whatever was mirrored of a member before is replaced, so that doing it again changes nothing.

    Args:
        rows: of any number of runs.
        folder: what ``tensorboard --logdir`` is given; a member's events are in ``<run>/<member>-seed-<seed>`` there.

    Raises:
        ValueError: where TensorBoard is not installed, or can't write.
    """
    check(str(folder))
    from torch.utils.tensorboard import SummaryWriter

    for (run, member, seed), measured in rows.group_by("run", "member", "seed", maintain_order=True):
        place = Path(folder, str(run), f"{member}-seed-{seed}")
        shutil.rmtree(place, ignore_errors=True)
        with SummaryWriter(str(place)) as writer:
            for metric, task, value in measured.select("metric", "task", "value").iter_rows():
                writer.add_scalar(metric, value, task)
