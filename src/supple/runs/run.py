"""The base class of all runs, in the laboratory and in reinforcement learning."""

from dataclasses import asdict, dataclass
from typing import Any

from supple.runs.folder import RunFolder

LARGEST_SEED = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class BaseRun:
    """Everything that determines a run's numbers; its folder is named after a digest of these values."""

    problem: str
    method: str
    seeds: tuple[int, ...]
    """One per member of the population."""

    def folder(self, root: str) -> RunFolder:
        """The run's folder under ``root``."""
        return RunFolder(root, self.config())

    def config(self) -> dict[str, Any]:
        """The run's fields as plain values, with the names that the store, its tables and its charts expect."""
        return asdict(self)

    def check_seeds(self) -> None:
        """Check that there are seeds, and that they are in their range."""
        if not self.seeds:
            raise ValueError("expected at least one seed, got none: give some")
        for seed in self.seeds:
            if not 0 <= seed <= LARGEST_SEED:
                raise ValueError(f"expected seeds from 0 to {LARGEST_SEED:,}, got {seed:,}: choose others")
