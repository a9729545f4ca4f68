"""A dry run: finds mistakes before anything is written."""

import numpy as np
import torch
from fsspec.implementations.local import LocalFileSystem

from supple.rl.agent import agent_of
from supple.rl.run import Run
from supple.rl.worlds import world_at
from supple.runs.files import files_at


def dry_run(run: Run, *, root: str, device: str = "cpu") -> None:
    """Check the folder, the device, the environment, its first change and the method before anything is written.

    Raises:
        ValueError: if one of them can't be used.
    """
    if not isinstance(files_at(root)[0], LocalFileSystem):
        raise ValueError(
            f"expected a folder on this machine, got {root!r}: choose one, the replay buffer is memory-mapped"
        )
    try:
        torch.zeros(1, device=device).item()
    except Exception as error:  # each kind of device raises its own exceptions
        why = str(error).partition("\n")[0]
        raise ValueError(f"expected a device of this machine, got {device!r} ({why}): choose another") from error
    environment = world_at(run, run.seeds[0], run.change_every or 0)
    environment.begin(0)
    environment.step(np.zeros(environment.action_size, np.float32))
    agent_of(run, environment.observation_size, environment.action_size, compiled=False, device=device)
