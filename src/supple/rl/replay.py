"""The replay buffer: the last transitions of every member, in memory or in a file that grows with them."""

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

    A row holds observation, action, reward, terminal and next observation side by side, so that a minibatch is gathered
    in one go. In a file the rows stay where they are: a checkpoint only holds how many there are, and a checksum of
    those that can still be drawn. The checksum is the sum of one number for each row, its CRC-32 with its place in
    time: a row that comes adds its number, a row that goes takes its own away, and no checkpoint reads the buffer.
    What is written after a checkpoint goes first to ``spare`` rows beyond the capacity, and overwrites nothing that the
    checkpoint still counts.

    Args:
        members: each has rows of its own, and all have the same number.
        capacity: transitions a member.
        observation_size: numbers in an observation.
        action_size: numbers in an action.
        spare: how many transitions a member may be added between two checkpoints.
        path: the file, which is given the size of the buffer; in memory when left out.
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
        self._had_size = False  # whether the file had this size before
        self._file: np.memmap | None = None
        if path is None:
            self._rows = np.zeros(shape, np.float32)  # memory that is not written to is not taken
        else:
            with path.open("ab") as file:
                self._had_size = file.tell() == size
                file.truncate(size)
            self._file = np.memmap(path, np.float32, "r+", shape=shape)
            self._rows = np.asarray(self._file)

    def __len__(self) -> int:
        return min(self.count - self.first, self.capacity)

    def drop(self) -> None:
        """Forget everything."""
        self.first, self._checksum = self.count, 0

    def add(
        self,
        observation: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        terminal: np.ndarray,
        next_observation: np.ndarray,
    ) -> None:
        """One transition of each member: ``(members, size)``, and ``(members,)`` for reward and terminal."""
        if len(self) == self.capacity:
            self._checksum -= self._number(self.count - self.capacity)
        row = self._rows[:, self.count % self._rows.shape[1]]
        parts = observation, action, reward[:, None], terminal[:, None], next_observation
        np.concatenate(parts, axis=1, out=row, casting="same_kind")
        self._checksum += self._number(self.count)
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
        if self._file is not None:
            self._file.flush()

    def state_dict(self) -> list[int]:
        """How many rows were written, the first that was not dropped, and the checksum of those that can be drawn."""
        return [self.count, self.first, self._checksum]

    def load_state_dict(self, state: Sequence[int]) -> None:
        """Go on with the rows that a state counts; all of them are read.

        Raises:
            ChangedDataError: when these are not the rows of that state; nothing is changed then.
        """
        count, first, *checksum = state
        found = sum(self._number(step) for step in range(max(first, count - self.capacity), count))
        # States of the first versions have no checksum: only the file's size can be compared.
        if (checksum != [found]) if checksum else not self._had_size:
            raise ChangedDataError(
                "expected the replay buffer that the checkpoint was written with, got another content"
            )
        self.count, self.first, self._checksum = count, first, found

    @property
    def nbytes(self) -> int:
        """The size of the rows, those not yet filled included."""
        return self._rows.nbytes

    def _number(self, step: int) -> int:
        """What the rows of a step add to the checksum: it depends on their step, their order and every bit of them."""
        found = step
        for row in self._rows[:, step % self._rows.shape[1]]:
            found = zlib.crc32(row, found)
        return found

    def _split(self, rows: Tensor) -> Batch:
        observation, action, reward, terminal, following = rows.split(self._sizes, -1)
        return Batch(observation, action, reward.squeeze(-1), terminal.squeeze(-1), following)
