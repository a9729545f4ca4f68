"""Environments: what they say, and that an episode can be taken up in the middle."""

import os
import sys
from types import ModuleType

import gymnasium
import numpy as np
import pytest

from supple.rl.envs import DmControl, Episodes, Gymnasium, Step, make, random_returns, tasks
from supple.runs.streams import Stream, generator, number


def actions(environment, count, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (count, environment.action_size)).astype(np.float32)


# A model drawn when it is built, a target moved in each episode, contacts and a quaternion, and Gymnasium.
@pytest.mark.parametrize("name", ["swimmer-swimmer6", "reacher-easy", "quadruped-run", "Pendulum-v1"])
def test_play_goes_on_in_the_middle_of_an_episode_to_the_bit(name):
    def played(episodes, chosen):
        return [(*found, total) for found, total in (episodes.step(action) for action in chosen)]

    episodes = Episodes(make(name), seed=4)
    chosen = actions(episodes.environment, 60)
    played(episodes, chosen[:40])
    state = episodes.state_dict()
    expected = played(episodes, chosen[40:])
    again = Episodes(make(name), seed=4)
    again.load_state_dict(state)
    for mine, theirs in zip(played(again, chosen[40:]), expected, strict=True):
        assert (mine[0] == theirs[0]).all()
        assert mine[1:] == theirs[1:]
    assert (episodes.observation == again.observation).all()


def test_every_member_and_every_episode_starts_elsewhere():
    starts = [make("cartpole-swingup").begin(seed) for seed in (1, 2)]
    assert (starts[0] != starts[1]).any()
    environment = make("cartpole-swingup")
    assert (environment.begin(1) == starts[0]).all()
    episodes, other = Episodes(environment, seed=0), Episodes(make("cartpole-swingup"), seed=1)
    first = episodes.observation
    assert (first != other.observation).any()
    while episodes.number == 0:
        episodes.step(np.zeros(1, np.float32))
    assert (first != episodes.observation).any()


def test_the_suites_time_limit_is_no_end():
    episodes = Episodes(make("cartpole-swingup"), seed=0)
    rewards = []
    for step, action in enumerate(actions(episodes.environment, 1000), 1):
        found, total = episodes.step(action)
        rewards.append(found.reward)
        assert found.last == (step == 1000)
        assert not found.terminal
        assert found.observation.dtype == np.float32
        assert found.observation.shape == (episodes.environment.observation_size,)
    assert total == pytest.approx(sum(rewards))
    assert episodes.number == 1
    assert episodes.total == 0


class Short:
    """Three steps; the reward is the first number of the action."""

    action_size = 2

    def begin(self, seed):
        self.seed, self.left = seed, 3

    def step(self, action):
        self.left -= 1
        return Step(np.zeros(1), float(action[0]), terminal=False, last=self.left == 0)


def test_returns_of_random_actions():
    environments = [Short(), Short()]
    found = random_returns(environments, seed=4, step=100)
    drawn = generator(Stream.RANDOM_POLICY, 4, 100).uniform(-1, 1, (2, 3, 2)).astype(np.float32)
    np.testing.assert_allclose(found, drawn[:, :, 0].sum(1), rtol=1e-6)
    assert [short.seed for short in environments] == [number(Stream.EVALUATION, 4, 100, k) for k in range(2)]


def test_a_simulation_that_diverges_ends_the_episode_without_a_terminal_state():
    environment = make("cartpole-swingup")
    first = environment.begin(0)
    environment._environment.physics.data.qvel[:] = np.nan
    step = environment.step(np.zeros(1, np.float32))
    assert (step.reward, step.terminal, step.last) == (0.0, False, True)
    assert (step.observation == first).all()


def test_actions_are_rescaled_to_the_suites_bounds():
    environment = DmControl("quadruped", "run")
    environment.begin(0)
    spec = environment._environment.action_spec()
    for action, bound in ((1, spec.maximum), (-1, spec.minimum), (0, (spec.minimum + spec.maximum) / 2)):
        environment.step(np.full(12, action, np.float32))
        np.testing.assert_allclose(environment._environment.physics.data.ctrl, bound, atol=1e-12)


class Tilted(gymnasium.Env):
    """Shows the action that it was given; ends, or times out, after the third step."""

    observation_space = gymnasium.spaces.Dict(
        {"seen": gymnasium.spaces.Box(-9, 9, (2,)), "n": gymnasium.spaces.Discrete(4)}
    )
    action_space = gymnasium.spaces.Box(np.float32([-1, 0]), np.float32([1, 4]))

    def __init__(self, ends):
        self.ends = ends

    def reset(self, *, seed=None, options=None):
        self.n = 0
        return {"seen": np.zeros(2, np.float32), "n": 0}, {}

    def step(self, action):
        self.n += 1
        return {"seen": action, "n": self.n}, 1.0, self.n == 3 and self.ends, self.n == 3 and not self.ends, {}


@pytest.mark.parametrize("ends", [True, False])
def test_any_gymnasium_environment(ends):
    gymnasium.register("Tilted-v0", Tilted, disable_env_checker=True)
    try:
        environment = Gymnasium("Tilted-v0", ends=ends)
    finally:
        del gymnasium.registry["Tilted-v0"]
    assert (environment.observation_size, environment.action_size) == (6, 2)
    assert environment.begin(0).tolist() == [1, 0, 0, 0, 0, 0]
    found = [environment.step(np.float32([-1, 0.5])) for _ in range(3)]
    assert found[0].observation.tolist() == [0, 1, 0, 0, -1, 3]
    assert [(step.terminal, step.last) for step in found] == [(False, False), (False, False), (ends, True)]


class Bounded(gymnasium.Env):
    """Keeps the actions that it was given."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,))

    def __init__(self, low, high, dtype):
        self.action_space = gymnasium.spaces.Box(np.array([low], dtype), np.array([high], dtype), dtype=dtype)
        self.seen = []

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.seen.append(action)
        return np.zeros(1, np.float32), 0.0, False, False, {}


@pytest.fixture
def bounded():
    gymnasium.register("Bounded-v0", Bounded, disable_env_checker=True)
    yield lambda low, high, dtype: Gymnasium("Bounded-v0", low=low, high=high, dtype=dtype)
    del gymnasium.registry["Bounded-v0"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize(("low", "high"), [(-0.5, 0.7), (-0.3, 0.7), (-1.9, -0.1), (0.0, 1e3)])
def test_actions_stay_in_their_space(bounded, low, high, dtype):
    environment = bounded(low, high, dtype)
    environment.begin(0)
    for action in np.linspace(-1, 1, 101, dtype=np.float32)[:, None]:
        environment.step(action)
    world = environment._environment.unwrapped
    assert all(world.action_space.contains(action) and action.dtype == dtype for action in world.seen)
    np.testing.assert_allclose(np.ravel(world.seen), np.linspace(low, high, 101), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("bound", [1.0, 2.0, 0.4, 0.7])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_between_symmetric_bounds_no_action_is_clipped(bounded, bound, dtype):
    environment, chosen = bounded(-bound, bound, dtype), np.random.default_rng(0).uniform(-1, 1, (1000, 1))
    environment.begin(0)
    chosen = np.float32([[-1], [1], [0], *chosen])
    for action in chosen:
        environment.step(action)
    expected = dtype(-bound) + (chosen + 1) * dtype(bound)
    assert np.array(environment._environment.unwrapped.seen).tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [(-128, 127, np.int8), (0, 255, np.uint8), (-3.4e38, 3.4e38, np.float32), (0, 1e10, float)],
)
def test_actions_that_are_whole_or_unlimited_are_refused(bounded, low, high, dtype):
    with pytest.raises(
        ValueError, match=r"got 'Bounded-v0' with Box.*: choose or wrap one whose action space is a Box"
    ):
        bounded(low, high, dtype)


def test_numbers_that_are_not_finite_are_refused(bounded, monkeypatch):
    environment, action = bounded(-1.0, 1.0, np.float32), np.zeros(1, np.float32)
    environment.begin(0)
    monkeypatch.setattr(Bounded, "step", lambda self, action: (action, np.inf, False, False, {}))
    with pytest.raises(ValueError, match=r"finite reward from the environment 'Bounded-v0', got \[0.\] and inf"):
        environment.step(action)
    monkeypatch.setattr(Bounded, "reset", lambda self, **options: (np.float32([np.nan]), {}))
    with pytest.raises(ValueError, match=r"1 finite numbers .* got \[nan\]"):
        environment.begin(0)


def test_a_module_of_ones_own_registers_its_environment(tmp_path, monkeypatch):
    (tmp_path / "worlds.py").write_text(
        "import gymnasium\nfrom gymnasium.envs.classic_control import PendulumEnv\n"
        "class Broken(PendulumEnv):\n    def step(self, action):\n        raise KeyError('wind')\n"
        "gymnasium.register('Own-v0', PendulumEnv)\ngymnasium.register('Broken-v0', Broken)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert make("worlds:Own-v0").begin(0).shape == (3,)
        broken = make("worlds:Broken-v0")
        broken.begin(0)
        with pytest.raises(ValueError, match=r"got 'worlds:Broken-v0', which raises KeyError: 'wind' .*worlds.py:5"):
            broken.step(np.zeros(1, np.float32))
        with pytest.raises(ValueError, match=r"got 'worlds:Owl-v0', which raises NameNotFound: .*`Owl`"):
            make("worlds:Owl-v0")
    finally:
        for name in ("Own-v0", "Broken-v0"):
            gymnasium.registry.pop(name, None)
    with pytest.raises(ValueError, match="No module named 'wurlds'"):
        make("wurlds:Own-v0")


def test_unknown_and_unfit_names():
    assert "quadruped-run" in tasks()
    with pytest.raises(ValueError, match=r"got 'Pendulum': did you mean 'Pendulum-v1'\?"):
        make("Pendulum")


def test_tasks_that_nobody_can_act_in_are_refused():
    with pytest.raises(ValueError, match="bounded actions, got lqr-lqr_2_1"):
        make("lqr-lqr_2_1")
    if os.environ["MUJOCO_GL"] == "off":
        with pytest.raises(ValueError, match="a GL library for this task, found none: set MUJOCO_GL=egl"):
            make("quadruped-escape").begin(0)
    with pytest.raises(ValueError, match=r"got 'quadrupd-run': did you mean 'quadruped-run'\?.*known are acrobot"):
        make("quadrupd-run")
    with pytest.raises(ValueError, match="continuous bounded actions, got 'CartPole-v1' with Discrete"):
        make("CartPole-v1")


def test_a_gl_library_that_does_not_load(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setitem(sys.modules, "dm_control", ModuleType("dm_control"))  # as if it failed when it was imported
    monkeypatch.delitem(sys.modules, "dm_control.suite", raising=False)
    with pytest.raises(ValueError, match="expected a GL library in MUJOCO_GL, got 'osmesa'"):
        make("cheetah-run")
