"""The configuration of a reinforcement-learning run: everything that determines its numbers."""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import polars as pl

from supple.errors import check_range, known
from supple.rl.methods import RESETS, check_exempt_heads, default_strength, find
from supple.rl.presets import PRESETS, Constants
from supple.rl.resets import Resets
from supple.runs.run import BaseRun
from supple.runs.store import load
from supple.training.methods import check_options, strength_of
from supple.training.precision import MATMUL_PRECISIONS

PAPER_STEPS = 1_000_000
PRIMED_ON = 100
"""Transitions in the buffer when heavy priming begins (Nikishin et al., 2022)."""

Change = Literal["actions", "dynamics", "task"]
"""What changes in a changing world; :mod:`supple.rl.worlds` draws the changes."""

COMMAND_FIELDS = (
    "steps",
    "preset",
    "replay_ratio",
    "random_steps",
    "capacity",
    "prime",
    "evaluate_every",
    "episodes",
    "inside",
    "change",
    "change_every",
)
"""The settings with an option of the same name in ``supple rl``; the method's own options are not among them."""


@dataclass(frozen=True, kw_only=True)
class Run(BaseRun):
    """A run of agents; a seed determines an agent's networks, environment, actions and minibatches.

    ``problem`` is the task: ``domain-task`` of the suite, a Gymnasium id, or ``module:id``.
    """

    strength: float
    """The method's strength on the critic."""
    actor_strength: float
    preset: str
    constants: Constants
    steps: int
    """Environment steps."""
    evaluate_every: int
    """Steps between two evaluations; each evaluation writes a checkpoint."""
    episodes: int
    """Episodes per evaluation."""
    resets: Resets | None
    prime: int
    """Heavy priming: updates on the first 100 transitions, before normal training; usually 0."""
    inside: bool
    """Whether each evaluation also measures the diagnostics of :mod:`supple.rl.inside`."""
    options: str = "{}"
    """The method's keyword arguments except its strength, as sorted JSON."""
    exempt_heads: bool = False
    """Whether the method leaves out the last layers: the critics' and the actor's mean and deviation."""
    matmul_precision: str = "highest"
    """Precision of float32 matrix products in updates, one of
    :data:`supple.training.precision.MATMUL_PRECISIONS`."""
    change: Change | None = None
    """What changes in the world; None if it stays the same."""
    change_every: int | None = None
    """Steps between two changes, a multiple of ``evaluate_every``."""

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
        options: Mapping[str, Any] | None = None,
        exempt_heads: bool | None = None,
        matmul_precision: str | None = None,
        change: Change | None = None,
        change_every: int | None = None,
        **constants: Any,
    ) -> "Run":
        """The run of a named method on a named task; None means the default.

        Raises:
            ValueError: for an unknown name (the message suggests the nearest one), an option that the method does not
                take, or if there is nothing to train.
        """
        chosen = find(method)
        given = {name: value for name, value in (resets or {}).items() if value is not None}
        if given and method != RESETS:
            raise ValueError(f"expected the method 'resets' for {sorted(given)}, got {method!r}: leave them out")
        check_options(method, chosen, options)
        if exempt_heads is None:
            exempt_heads = chosen.control_exempts_heads
        if exempt_heads:
            check_exempt_heads(method, chosen)
        changes = dict(PRESETS[known(preset, PRESETS, "preset")])
        changes |= {name: value for name, value in constants.items() if value is not None}
        if not chosen.has_strength:  # of another method in the same command
            strength = actor_strength = None
        strength = strength_of(method, chosen, strength, default_strength(chosen))
        run = cls(
            problem=problem,
            method=method,
            strength=strength,
            actor_strength=strength_of(method, chosen, actor_strength, strength),
            seeds=tuple(seeds),
            preset=preset,
            constants=Constants(**changes),
            steps=steps,
            evaluate_every=evaluate_every,
            episodes=episodes,
            resets=Resets(**given) if method == RESETS else None,
            prime=prime,
            inside=inside,
            options=json.dumps(dict(options or {}), sort_keys=True),
            exempt_heads=exempt_heads,
            matmul_precision=known(matmul_precision or "highest", MATMUL_PRECISIONS, "precision"),
            change=change,
            change_every=change_every,
        )
        run._check()
        return run

    def _check(self) -> None:
        """Check that there is something to train, and that the requested priming and resets will happen."""
        constants, ratio = self.constants, self.constants.replay_ratio
        self.check_seeds()
        check_range("steps", self.steps, 1)
        check_range("steps from one evaluation to the next", self.evaluate_every, 1)
        check_range("episodes in an evaluation", self.episodes, 1, 1_000)
        check_range("updates for priming", self.prime, 0)
        if constants.capacity < constants.random_steps:
            raise ValueError(
                f"expected a buffer for the {constants.random_steps:,} random steps before the first update, got one "
                f"for {constants.capacity:,} transitions: choose a larger one (--capacity), or fewer random steps "
                "(--random-steps)"
            )
        if self.prime and constants.random_steps < PRIMED_ON:
            raise ValueError(
                f"expected at least {PRIMED_ON} random steps before priming, got {constants.random_steps:,}: use more "
                "(--random-steps), or no priming"
            )
        if not self.updates:
            raise ValueError(
                f"expected more steps than the {constants.random_steps:,} random ones before the first update, got "
                f"{self.steps:,}: choose more (--steps), or fewer random ones (--random-steps)"
            )
        if self.resets and self.resets.every < self.evaluate_every * (ratio if self.resets.unit == "updates" else 1):
            raise ValueError(
                "expected an evaluation before each reset, got a reset every "
                f"{self.resets.every:,} {self.resets.unit} and an evaluation every {self.evaluate_every:,} steps of "
                f"{ratio} updates: evaluate more often (--evaluate-every)"
            )
        if self.change or self.change_every:
            self._check_change()
        layers = len(constants.hidden) + 1
        if self.resets and (self.resets.layers or 1) > layers:
            raise ValueError(
                f"expected resets of at most the {layers} layers that the networks have, got {self.resets.layers}: "
                "leave the number out to reset all"
            )

    def _check_change(self) -> None:
        """Check that the world changes, and only right after an evaluation."""
        if self.change is None or self.change_every is None:
            raise ValueError(
                f"expected --change and --change-every together, got {self.change} and {self.change_every}: give both, "
                "or neither"
            )
        known(self.change, get_args(Change), "kind of change")
        if self.change_every < 1 or self.change_every % self.evaluate_every:
            raise ValueError(
                "expected --change-every to be a multiple of --evaluate-every, got "
                f"{self.change_every:,} and {self.evaluate_every:,}: change one of them"
            )
        if self.change_every >= self.steps:
            raise ValueError(
                f"expected a change before the end, got one every {self.change_every:,} of {self.steps:,} steps: train "
                "longer (--steps), or change more often (--change-every)"
            )

    def config(self) -> dict[str, Any]:
        """Plain values, named as the store, its tables and its charts expect them.

        In the store, a "task" is the interval between two evaluations, counted from 0. ``options`` is sorted JSON of
        the method's options that differ from their defaults, except its strength; ``resets`` lists all reset options.
        The usual precision and a world without changes are left out: older folders keep their names.
        """
        omitted = ["strength", "actor_strength", "constants", "resets", "options", "exempt_heads"]
        omitted += ["matmul_precision"] * (self.matmul_precision == "highest")
        omitted += ["change", "change_every"] * (self.change is None)
        flat = {key: value for key, value in dataclasses.asdict(self).items() if key not in omitted}
        flat |= dataclasses.asdict(self.constants)
        usual = Resets()
        resets = dataclasses.asdict(self.resets) if self.resets else {}
        options = json.loads(self.options)
        options |= {key: value for key, value in resets.items() if value != getattr(usual, key)}
        if self.actor_strength != self.strength:
            options["actor_strength"] = self.actor_strength
        if self.exempt_heads:
            options["exempt_heads"] = True
        return {key: _joined(value) for key, value in flat.items()} | {
            "seeds": self.seeds,
            "strengths": (self.strength,) * len(self.seeds),
            "resets": [f"{key}: {_joined(value)}" for key, value in resets.items()],
            "options": json.dumps({key: _joined(value) for key, value in options.items()}, sort_keys=True),
            "scale": self.scale,
            "tasks": self.evaluations,
        }

    @property
    def updates(self) -> int:
        """Updates of each agent in the whole run, if no reset drops the buffer."""
        return self._updates_until(self.steps)

    def work_until(self, step: int) -> float:
        """The work done until ``step``, in steps; priming counts as the number of steps with as many updates."""
        return step + (self.prime / self.constants.replay_ratio if step >= PRIMED_ON else 0)

    @property
    def is_reset(self) -> bool:
        """Whether the run contains a reset: one after an evaluation that is not the last."""
        step = (self.evaluations - 1) * self.evaluate_every
        return bool(self.resets and self.resets.periods(step, self._updates_until(step)))

    def _updates_until(self, step: int) -> int:
        first = max(1, self.constants.random_steps)
        return max(0, step - first + 1) * self.constants.replay_ratio + self.prime * (step > 0)

    @property
    def scale(self) -> Literal["quick", "paper"]:
        """``paper`` if length and constants are those of the published protocol, with a buffer of any size."""
        constants = dataclasses.replace(self.constants, capacity=Constants().capacity)
        published = constants == Constants() and self.steps == PAPER_STEPS and not self.prime and not self.change
        return "paper" if published else "quick"

    @property
    def evaluations(self) -> int:
        """Evaluations in the whole run."""
        return math.ceil(self.steps / self.evaluate_every)


def _joined(value: Any) -> Any:
    """A tuple as one string, for a table's column; any other value unchanged."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else value


def results(runs: Iterable[Run], root: str) -> pl.DataFrame:
    """The measurements of these runs, in the same order."""
    order = pl.DataFrame({"run": [run.folder(root).name for run in runs]})
    return order.join(load(root, set(order["run"])), on="run", maintain_order="left_right")
