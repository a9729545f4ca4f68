"""The replay buffer: the last transitions of every member, in memory or in a file that grows with them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from supple.rl.sac import Batch


class Replay:
    """The last ``capacity`` transitions of every member, each as one row of 32-bit numbers.

    A row holds observation, action, reward, terminal and next observation side by side, so that a minibatch is gathered
    in one go. In a file the rows are where they will be found again: a checkpoint need only say how many there are.
    What is written after a checkpoint goes first to ``spare`` rows beyond the capacity, and overwrites nothing that the
    checkpoint still counts.

    Args:
        members: each has rows of its own, and all have the same number.
        capacity: transitions a member.
        observation_size: numbers in an observation.
        action_size: numbers in an action.
        spare: how many transitions a member may be added between two checkpoints.
        path: the file; in memory when left out.
    """

    def __init__(
        self,
        members: int,
        capacity: int,
        observation_size: int,
        action_size: int,
        *,
        spare: int = 0,
        path: Path | None = None,
    ) -> None:
        self.capacity = capacity
        self.count, self.first = 0, 0  # rows written so far, and the first of them that has not been dropped
        self._sizes = [observation_size, action_size, 1, 1, observation_size]
        shape = members, capacity + spare, sum(self._sizes)
        size = 4 * members * shape[1] * shape[2]
        self.found = path is not None and path.exists() and path.stat().st_size == size
        """Whether the file was there already, of the right size."""
        self._rows: np.ndarray
        if path is None:
            self._rows = np.zeros(shape, np.float32)  # memory that is not written to is not taken
        else:
            self._rows = np.memmap(path, np.float32, "r+" if self.found else "w+", shape=shape)

    def __len__(self) -> int:
        return min(self.count - self.first, self.capacity)

    def drop(self) -> None:
        """Forget everything."""
        self.first = self.count

    def add(
        self,
        observation: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        terminal: np.ndarray,
        next_observation: np.ndarray,
    ) -> None:
        """One transition of each member: ``(members, size)``, and ``(members,)`` for reward and terminal."""
        row = self._rows[:, self.count % self._rows.shape[1]]
        parts = observation, action, reward[:, None], terminal[:, None], next_observation
        np.concatenate(parts, axis=1, out=row, casting="same_kind")
        self.count += 1

    def sample(self, generators: Sequence[np.random.Generator], updates: int, size: int) -> Batch:
        """Uniform minibatches ``(updates, members, size, ...)``, each member's drawn by its own generator."""
        oldest = self.count - len(self)
        rows = []
        for member, generator in zip(self._rows, generators, strict=True):
            index = (oldest + generator.integers(len(self), size=updates * size)) % self._rows.shape[1]
            rows.append(torch.from_numpy(member[index]).view(updates, size, -1))
        return self._split(torch.stack(rows, 1))

    def latest(self, size: int) -> Batch:
        """Every member's last ``size`` transitions, ``(members, size, ...)``."""
        index = np.arange(self.count - size, self.count) % self._rows.shape[1]
        return self._split(torch.from_numpy(self._rows[:, index]))

    def flush(self) -> None:
        """What is in the file so far is on the disk when this returns."""
        if isinstance(self._rows, np.memmap):
            self._rows.flush()

    @property
    def nbytes(self) -> int:
        """The size of the rows, those not yet filled included."""
        return self._rows.nbytes

    def _split(self, rows: Tensor) -> Batch:
        observation, action, reward, terminal, following = rows.split(self._sizes, -1)
        return Batch(observation, action, reward.squeeze(-1), terminal.squeeze(-1), following)
