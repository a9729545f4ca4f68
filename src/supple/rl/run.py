"""What a run of control is: everything that its numbers depend on."""

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supple.errors import known
from supple.rl.methods import METHODS, Resets
from supple.rl.presets import PRESETS, Constants
from supple.runs.store import RunFolder


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that determines a run's numbers: its folder is named after this content."""

    problem: str
    """The task: ``domain-task`` of the suite, or a Gymnasium id."""
    method: str
    strength: float
    """The method's on the critic."""
    actor_strength: float
    seeds: tuple[int, ...]
    """One member each: its networks, its environment, its actions and its minibatches."""
    preset: str
    constants: Constants
    steps: int
    """Of the environment."""
    evaluate_every: int
    """Steps from one evaluation, and checkpoint, to the next."""
    episodes: int
    """In an evaluation."""
    resets: Resets | None
    prime: int
    """Updates on the first 100 transitions, before training goes on as usual; none for most."""
    inside: bool
    """Whether each evaluation looks inside the networks."""

    @classmethod
    def of(
        cls,
        problem: str,
        method: str,
        seeds: Iterable[int],
        *,
        steps: int,
        preset: str = "paper",
        strength: float | None = None,
        actor_strength: float | None = None,
        resets: dict[str, Any] | None = None,
        evaluate_every: int = 5_000,
        episodes: int = 10,
        prime: int = 0,
        inside: bool = False,
        **constants: Any,
    ) -> "Run":
        """The run of a named method on a named task; what is None leaves the defaults.

        Raises:
            ValueError: for an unknown name, with the nearest known one, or nothing to train.
        """
        chosen = METHODS[known(method, METHODS, "method")]
        given = {name: value for name, value in (resets or {}).items() if value is not None}
        if given and not chosen.resets:
            raise ValueError(f"expected resets of the method 'resets' alone, got {sorted(given)} for {method!r}")
        changes = dict(PRESETS[known(preset, PRESETS, "preset")].changes)
        changes |= {name: value for name, value in constants.items() if value is not None}
        strength = float(chosen.strength if strength is None else strength)
        run = cls(
            problem=problem,
            method=method,
            strength=strength,
            actor_strength=strength if actor_strength is None else float(actor_strength),
            seeds=tuple(seeds),
            preset=preset,
            constants=Constants(**changes),
            steps=steps,
            evaluate_every=evaluate_every,
            episodes=episodes,
            resets=dataclasses.replace(chosen.resets, **given) if chosen.resets else None,
            prime=prime,
            inside=inside,
        )
        if not run.seeds or min(steps, evaluate_every, episodes, run.constants.replay_ratio) < 1:
            raise ValueError(
                f"expected at least one seed, step, update a step and evaluation episode, got {len(run.seeds)}, "
                f"{steps}, {run.constants.replay_ratio} and {episodes}, with an evaluation every {evaluate_every}"
            )
        return run

    def folder(self, root: Path) -> RunFolder:
        """Where under ``root`` the run's results belong."""
        return RunFolder(root, self.config())

    def config(self) -> dict[str, Any]:
        """Flat and plain: names and values that a table's columns can hold."""
        flat = {key: value for key, value in dataclasses.asdict(self).items() if key not in ("constants", "resets")}
        flat |= dataclasses.asdict(self.constants)
        if self.resets:
            flat |= {f"reset_{key}": value for key, value in dataclasses.asdict(self.resets).items()}
        return {
            key: value if key == "seeds" or not isinstance(value, tuple) else " ".join(map(str, value))
            for key, value in flat.items()
        }

    @property
    def evaluations(self) -> int:
        """How many there are to the end."""
        return math.ceil(self.steps / self.evaluate_every)
