"""The replay buffer: the last transitions of every member, in memory or in a memory-mapped file."""

import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from supple.rl.sac import Batch
from supple.runs.resume import ChangedDataError


class Replay:
    """The last ``capacity`` transitions of every member, each as one row of 32-bit numbers.

    A row holds observation, action, reward, terminal and next observation side by side, so one indexing operation
    gathers a minibatch. A checkpoint does not copy the rows of a file: it holds their number and a checksum of the rows
    that can still be sampled. The checksum is a sum over steps of the CRC-32 of the step and its rows. Adding a step
    adds its number and dropping a step subtracts it, so saving a checkpoint never reads the buffer. ``spare`` rows
    beyond the capacity keep new transitions from overwriting rows that the last checkpoint still needs.

    Args:
        members: how many; every member has its own rows, and all have the same number of rows.
        capacity: transitions per member.
        observation_size: numbers in an observation.
        action_size: numbers in an action.
        spare: the largest number of transitions per member between two checkpoints.
        path: the file, which is resized to the buffer's size; in memory when left out.

    Raises:
        ValueError: if the disk has no room for the file. It grows as rows are written, and a full disk would kill the
            process without a message.
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
        self._checksum = 0
        self._sizes = [observation_size, action_size, 1, 1, observation_size]
        shape = members, capacity + spare, sum(self._sizes)
        size = 4 * members * shape[1] * shape[2]
        self._file: np.memmap | None = None
        if path is None:
            self._rows = np.zeros(shape, np.float32)  # the system allocates memory only when it is written to
        else:
            with path.open("ab") as file:
                missing = size - path.stat().st_blocks * 512  # a file takes no room where nothing was written
                if missing > (free := shutil.disk_usage(path).free):
                    raise ValueError(
                        f"expected {missing / 1e6:,.0f} MB of free disk for the replay buffer {path}, got "
                        f"{free / 1e6:,.0f} MB: make room, choose another folder (--out) or a smaller --capacity"
                    )
                file.truncate(size)
            self._file = np.memmap(path, np.float32, "r+", shape=shape)
            self._rows = np.asarray(self._file)

    def __len__(self) -> int:
        return min(self.count - self.first, self.capacity)

    def drop(self) -> None:
        """Drop all transitions."""
        self.first, self._checksum = self.count, 0

    def add(
        self,
        observation: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        terminal: np.ndarray,
        next_observation: np.ndarray,
    ) -> None:
        """Add one transition of each member: ``(members, size)``, and ``(members,)`` for reward and terminal."""
        if len(self) == self.capacity:
            self._checksum -= self._number(self.count - self.capacity)
        row = self._rows[:, self.count % self._rows.shape[1]]
        parts = observation, action, reward[:, None], terminal[:, None], next_observation
        np.concatenate(parts, axis=1, out=row, casting="same_kind")
        self._checksum += self._number(self.count)
        self.count += 1

    def sample(self, generators: Sequence[np.random.Generator], updates: int, size: int) -> Batch:
        """Uniform minibatches ``(updates, members, size, ...)``; each member has its own generator."""
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
        """Write everything added so far to the disk."""
        if self._file is not None:
            self._file.flush()

    def state_dict(self) -> list[int]:
        """The number of rows written, the first row not dropped, and the checksum of the rows that can be sampled."""
        return [self.count, self.first, self._checksum]

    def load_state_dict(self, state: Sequence[int]) -> None:
        """Continue with the rows that the state refers to; all of them are read to verify the checksum.

        Raises:
            ChangedDataError: when these are not the rows of that state; nothing is changed then.
        """
        count, first, checksum = state
        actual = sum(self._number(step) for step in range(max(first, count - self.capacity), count))
        if checksum != actual:
            raise ChangedDataError("expected the replay buffer of the checkpoint, got one with other rows")
        self.count, self.first, self._checksum = count, first, actual

    def _number(self, step: int) -> int:
        """A step's term in the checksum: it depends on the step, the order of its rows and every bit of them."""
        term = step
        for row in self._rows[:, step % self._rows.shape[1]]:
            term = zlib.crc32(row, term)
        return term

    def _split(self, rows: Tensor) -> Batch:
        observation, action, reward, terminal, following = rows.split(self._sizes, -1)
        return Batch(observation, action, reward.squeeze(-1), terminal.squeeze(-1), following)
