"""Write the rows of the store as TensorBoard events."""

import shutil
from importlib.util import find_spec
from pathlib import Path

import polars as pl

from supple.runs.files import check_writable


def check(folder: str) -> None:
    """Check, before hours of training, that TensorBoard is installed and can write to the folder."""
    if find_spec("tensorboard") is None:
        raise ValueError("expected the package tensorboard, got none: pip install tensorboard")
    check_writable(folder)


def mirror(rows: pl.DataFrame, folder: str | Path) -> None:
    """Write rows from :func:`supple.runs.store.load`: each member is a run, and each metric a scalar over tasks.

    Earlier events of a member are replaced, so repeating this changes nothing.

    Args:
        rows: of any number of runs.
        folder: the folder for ``tensorboard --logdir``; a member's events go to ``<run>/<member>-seed-<seed>`` in it.

    Raises:
        ValueError: if TensorBoard is not installed, or can't write to the folder.
    """
    check(str(folder))
    from torch.utils.tensorboard import SummaryWriter

    for (run, member, seed), measured in rows.group_by("run", "member", "seed", maintain_order=True):
        place = Path(folder, str(run), f"{member}-seed-{seed}")
        shutil.rmtree(place, ignore_errors=True)
        with SummaryWriter(str(place)) as writer:
            for metric, task, value in measured.select("metric", "task", "value").iter_rows():
                writer.add_scalar(metric, value, task)
