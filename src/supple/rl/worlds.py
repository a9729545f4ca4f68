"""A world that changes at regular intervals: other actions, other dynamics, or another task.

A change depends only on the agent's seed and the number of the change, so every method meets the same worlds. World 0,
before the first change, is the task itself.
"""

from functools import cache

import numpy as np

from supple.rl.envs import DmControl, Environment, Step, make, tasks
from supple.rl.run import Run
from supple.runs.streams import Stream, generator

LARGEST_FACTORS = {"mass": 2.0, "friction": 2.0, "damping": 1.5}
r"""A change of the dynamics multiplies the original model's values by factors from 1 / x to x, log-uniformly.

Motors keep their strength. With damping, the suite's weakest motor limits x: ``pendulum-swingup`` gains at most
:math:`2\pi u` of energy in a swing through a whole turn (torque u = 1) and loses :math:`d \cdot 8\sqrt{g / l}`, so it
is solvable up to a damping d of 0.177, which is 1.77 times its own. Peng et al., *Sim-to-Real Transfer of Robotic
Control with Dynamics Randomization*, 2018, use ¼ to 4 for masses and ⅕ to 20 for damping, with a strong robot arm.
"""


class Rearranged:
    """An environment with its actions in another order and with other signs.

    Args:
        environment: whose actions these are.
        matrix: a permutation matrix with signs; it maps the agent's action to the environment's.
    """

    def __init__(self, environment: Environment, matrix: np.ndarray) -> None:
        self.original, self._matrix = environment, matrix
        self.observation_size, self.action_size = environment.observation_size, environment.action_size

    def begin(self, seed: int) -> np.ndarray:
        return self.original.begin(seed)

    def step(self, action: np.ndarray) -> Step:
        return self.original.step(self._matrix @ action)


def world_at(run: Run, seed: int, step: int, *, limited: bool = False) -> Environment:
    """The environment in which the agent with this seed takes a step; steps are counted from 0.

    Args:
        run: whose world this is.
        seed: of the agent.
        step: of the environment.
        limited: as for :func:`supple.rl.envs.make`.

    Raises:
        ValueError: when this kind of change is impossible for the task.
    """
    changes = step // run.change_every if run.change_every else 0
    problem = _task_after(run.problem, seed, changes) if run.change == "task" else run.problem
    environment = make(problem, limited=limited)
    if run.change == "actions":
        return Rearranged(environment, _arrangement_after(environment.action_size, seed, changes))
    if run.change == "dynamics":
        if not isinstance(environment, DmControl):
            raise ValueError(
                f"expected a task of the suite, whose masses and friction can change, got {problem!r}: use "
                "--change actions, which every environment allows"
            )
        if changes:
            random = generator(Stream.CHANGE, seed, changes)
            environment.scale(**{name: most ** random.uniform(-1, 1) for name, most in LARGEST_FACTORS.items()})
    return environment


@cache
def on_the_same_body(problem: str) -> list[str]:
    """The tasks of the suite in the same domain with the same sizes of observation and action, itself among them.

    Raises:
        ValueError: when there is no other task.
    """
    table, domain = tasks(), problem.partition("-")[0]
    sizes = {}
    if problem not in table:
        make(problem)  # for an unknown environment, raises an error that suggests a name
    else:
        for name in (name for name in table if name.partition("-")[0] == domain):
            environment = table[name]()
            sizes[name] = environment.observation_size, environment.action_size
    same = [name for name, size in sizes.items() if size == sizes[problem]]
    if len(same) < 2:
        raise ValueError(
            f"expected a task of the suite with others on the same body, such as walker-walk, got {problem!r}: use "
            "--change actions, which every environment allows"
        )
    return same


def _task_after(problem: str, seed: int, changes: int) -> str:
    """The task after ``changes`` changes; each change draws one that differs from the last."""
    names, current = on_the_same_body(problem), problem
    for change in range(1, changes + 1):
        others = [name for name in names if name != current]
        current = others[generator(Stream.CHANGE, seed, change).integers(len(others))]
    return current


def _arrangement_after(size: int, seed: int, changes: int) -> np.ndarray:
    """The matrix of order and signs after ``changes`` changes; each change draws one that differs from the last."""
    current = np.eye(size, dtype=np.float32)
    for change in range(1, changes + 1):
        random, before = generator(Stream.CHANGE, seed, change), current
        while (current == before).all():
            signs = random.choice(np.array([-1, 1], np.float32), (size, 1))
            current = signs * np.eye(size, dtype=np.float32)[random.permutation(size)]
    return current
