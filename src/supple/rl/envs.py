"""Environments with continuous actions, from the DeepMind Control Suite and Gymnasium."""

import math
import os
import re
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np

from supple.errors import known
from supple.runs.streams import Stream, generator, number

UNLIMITED = 1e10
"""The suite's bound for an actuator without limits."""
LONGEST_EPISODE = 10_000
"""Time limit, in steps, for episodes that must end, where the environment itself has no time limit."""


class Step(NamedTuple):
    """The result of one action."""

    observation: np.ndarray
    reward: float
    terminal: bool
    """Whether a terminal state was reached, whose value is zero; false if the episode only ran out of time."""
    last: bool
    """Whether the episode ended, for either reason."""


class Environment(Protocol):
    """An environment whose episodes depend only on their seed and the actions."""

    observation_size: int
    action_size: int

    def begin(self, seed: int) -> np.ndarray:
        """Start an episode; return its first observation as float32."""

    def step(self, action: np.ndarray) -> Step:
        """Take one action, each number in [−1, 1]."""


class DmControl:
    """A task of the DeepMind Control Suite (Tunyasuvunakool et al., 2020), used directly, without a wrapper.

    Action repeat is 1; actions are rescaled from [−1, 1]. If the simulation diverges, the episode ends with reward 0.
    """

    def __init__(self, domain: str, task: str) -> None:
        suite = _suite()
        # A few tasks generate their model randomly when they are built: this seed makes it the same each time.
        self._environment = suite.load(domain, task, task_kwargs={"random": 0})
        action, observations = self._environment.action_spec(), self._environment.observation_spec()
        if np.abs([action.minimum, action.maximum]).max() >= UNLIMITED:
            raise ValueError(
                f"expected a task with bounded actions, got {domain}-{task}, which has none: choose another"
            )
        self._low, self._range = action.minimum, (action.maximum - action.minimum) / 2
        self.action_size = action.shape[0]
        self.observation_size = sum(int(np.prod(spec.shape)) for spec in observations.values())
        self._damping, self._damping_factor = self._environment.physics.model.dof_damping.copy(), 1.0

    def begin(self, seed: int) -> np.ndarray:
        self._environment.task.random.seed(seed)
        try:
            first = self._environment.reset()
        except RuntimeError as error:
            if "OpenGL" not in str(error):
                raise
            raise ValueError("expected a GL library for this task, found none: set MUJOCO_GL=egl") from error
        damping = self._environment.physics.model.dof_damping
        damping[damping != self._damping] *= self._damping_factor  # finger-spin sets a joint's in each episode
        self._last = _flat(first.observation)
        return self._last

    def step(self, action: np.ndarray) -> Step:
        from dm_control.rl.control import PhysicsError

        try:
            time_step = self._environment.step(self._low + (action.astype(np.float64) + 1) * self._range)
        except PhysicsError:
            return Step(self._last, 0.0, terminal=False, last=True)
        self._last = _flat(time_step.observation)
        return Step(self._last, float(time_step.reward), terminal=time_step.discount == 0, last=time_step.last())

    def scale(self, *, mass: float, friction: float, damping: float) -> None:
        """Multiply the model's masses and inertias, the friction of its contacts, and the damping of its joints."""
        import mujoco

        model, data = self._environment.physics.model, self._environment.physics.data
        for values, factor in (
            (model.body_mass, mass),
            (model.body_inertia, mass),
            (model.geom_friction, friction),
            (model.pair_friction, friction),
            (model.dof_damping, damping),
        ):
            values *= factor
        mujoco.mj_setConst(model.ptr, data.ptr)  # computes again what MuJoCo derives from masses
        self._damping, self._damping_factor = model.dof_damping.copy(), self._damping_factor * damping

    def render(self, size: int) -> np.ndarray:
        """An image ``(size, size, 3)`` of the current state; needs a GL library."""
        picture: np.ndarray = self._environment.physics.render(size, size, camera_id=0)
        return picture


class Gymnasium:
    """Any Gymnasium environment whose action space is a bounded ``Box`` of floats.

    Args:
        name: an id, or ``module:id`` for an environment that your own module registers.
        limited: whether every episode must end: without a time limit of its own it gets ``LONGEST_EPISODE``.
        **options: passed to ``gymnasium.make``.

    Raises:
        ValueError: for another action space, bounds of ``UNLIMITED`` or more, or an error of the environment's own.
    """

    def __init__(self, name: str, *, limited: bool = False, **options: Any) -> None:
        import gymnasium

        self._name = name
        environment = self._ask(gymnasium.make, name, **options)
        if limited and environment.spec.max_episode_steps is None:
            environment = gymnasium.wrappers.TimeLimit(environment, LONGEST_EPISODE)
        actions, observations = environment.action_space, environment.observation_space
        if not _is_continuous_and_bounded(actions):
            raise ValueError(
                f"expected an environment with continuous bounded actions, got {name!r} with {actions}: choose or wrap "
                f"one whose action space is a Box of floats with bounds below {UNLIMITED:g}"
            )
        self._environment, self._space, self._actions = environment, observations, actions
        self._range = (actions.high - actions.low) / 2
        self.action_size = int(np.prod(actions.shape))
        self.observation_size = self._ask(gymnasium.spaces.flatdim, observations)
        self._flatten = gymnasium.spaces.flatten

    def begin(self, seed: int) -> np.ndarray:
        observation: np.ndarray = self._ask(lambda: self._flat(self._environment.reset(seed=seed)[0]))
        self._check(observation, 0.0)
        return observation

    def step(self, action: np.ndarray) -> Step:
        space = self._actions
        rescaled = space.low + (action.reshape(space.shape) + 1) * self._range
        rescaled = rescaled.clip(space.low, space.high).astype(space.dtype)  # rounding may leave the bounds
        result: Step = self._ask(self._step, rescaled)
        self._check(result.observation, result.reward)
        return result

    def _step(self, action: np.ndarray) -> Step:
        observation, reward, terminated, truncated, _ = self._environment.step(action)
        return Step(self._flat(observation), float(reward), terminated, terminated or truncated)

    def _flat(self, observation: Any) -> np.ndarray:
        return np.asarray(self._flatten(self._space, observation), np.float32)

    def _check(self, observation: np.ndarray, reward: float) -> None:
        """Reject values that are not finite: they would break the agent's networks, and its method would be blamed."""
        whole = observation.shape == (self.observation_size,) and np.isfinite(observation).all()
        if not (whole and math.isfinite(reward)):
            raise ValueError(
                f"expected {self.observation_size} finite numbers and a finite reward from the environment "
                f"{self._name!r}, got {observation} and {reward}: correct the environment, which returned them"
            )

    def _ask(self, question: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call the environment's own code; re-raise its errors with their type and location."""
        try:
            return question(*arguments, **options)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            raise ValueError(
                f"expected a Gymnasium environment that runs, got {self._name!r}, which raises {type(error).__name__}: "
                f"{error} ({place.filename}:{place.lineno}): correct the environment"
            ) from error


@dataclass
class Episodes:
    """One environment, played episode after episode.

    Its state is the number of the episode and the actions taken in it so far. Resuming replays these actions. The
    result is bit-for-bit identical in any environment that keeps no state from one episode to the next.
    """

    environment: Environment
    seed: int
    number: int = 0
    actions: list[np.ndarray] = field(default_factory=list)
    total: float = 0.0
    """The rewards of this episode so far."""

    def __post_init__(self) -> None:
        self.observation = self._begin()

    def step(self, action: np.ndarray) -> tuple[Step, float | None]:
        """Take one action; return its result, and the episode's return if it ended: then the next episode begins."""
        result = self._play(action)
        if not result.last:
            return result, None
        finished = self.total
        self._begin_next()
        return result, finished

    def move_to(self, environment: Environment) -> None:
        """Cut the current episode off, and begin the next one in another environment."""
        self.environment = environment
        self._begin_next()

    def state_dict(self) -> dict[str, Any]:
        """The number of the current episode and its actions so far."""
        return {"number": self.number, "actions": [action.tolist() for action in self.actions]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Start that episode and replay its actions."""
        self.number, self.actions, self.total = state["number"], [], 0.0
        self.observation = self._begin()
        for action in state["actions"]:
            self._play(np.asarray(action, np.float32))

    def _begin_next(self) -> None:
        self.number, self.actions, self.total = self.number + 1, [], 0.0
        self.observation = self._begin()

    def _begin(self) -> np.ndarray:
        return self.environment.begin(number(Stream.EPISODE, self.seed, self.number))

    def _play(self, action: np.ndarray) -> Step:
        result = self.environment.step(action)
        self.actions.append(action)
        self.observation, self.total = result.observation, self.total + result.reward
        return result


def random_returns(environments: Sequence[Environment], seed: int, step: int) -> np.ndarray:
    """Returns of uniformly random actions in the episodes of the evaluation at ``step``."""
    random, totals = generator(Stream.RANDOM_POLICY, seed, step), np.zeros(len(environments))
    for k, environment in enumerate(environments):
        environment.begin(number(Stream.EVALUATION, seed, step, k))
        last = False
        while not last:
            _, reward, _, last = environment.step(random.uniform(-1, 1, environment.action_size).astype(np.float32))
            totals[k] += reward
    return totals


def tasks() -> dict[str, Callable[[], Environment]]:
    """Every task of the suite as ``domain-task``."""
    suite = _suite()
    return {f"{domain}-{task}": partial(DmControl, domain, task) for domain, task in suite.ALL_TASKS}


def make(name: str, *, limited: bool = False) -> Environment:
    """The environment with this name: ``domain-task`` of the suite, a Gymnasium id, or ``module:id``.

    Args:
        name: of the environment.
        limited: whether every episode must end, even if the environment has no time limit.

    Raises:
        ValueError: for an unknown name; the message suggests the nearest known one.
    """
    try:
        import gymnasium
    except ModuleNotFoundError as error:
        raise ValueError(f"expected the extra `rl`, got no {error.name}: pip install '.[rl]' in the clone") from None
    if name in gymnasium.registry or re.fullmatch(r"[\w.]+:[^:]+", name):
        return Gymnasium(name, limited=limited)
    table = tasks()
    known(name, [*table, *gymnasium.registry], "task of the suite, a Gymnasium id or module:id")
    return table[name]()


def _suite() -> Any:
    # Training renders nothing, so no GL library is loaded; to render, set MUJOCO_GL beforehand.
    os.environ.setdefault("MUJOCO_GL", "off")
    try:
        from dm_control import suite
    except ModuleNotFoundError:
        raise
    except Exception as error:  # each GL library raises its own exceptions
        name = os.environ["MUJOCO_GL"]
        raise ValueError(
            f"expected a GL library in MUJOCO_GL, got {name!r} ({error}): unset it, or set it to egl"
        ) from error
    return suite


def _is_continuous_and_bounded(space: Any) -> bool:
    from gymnasium.spaces import Box

    if not isinstance(space, Box) or not np.issubdtype(space.dtype, np.floating):
        return False
    return bool((np.abs(np.array([space.low, space.high], np.float64)) < UNLIMITED).all())


def _flat(observation: dict[str, Any]) -> np.ndarray:
    return np.concatenate([np.ravel(value) for value in observation.values()]).astype(np.float32)
