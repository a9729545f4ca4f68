"""Worlds that change: what is drawn, from what, and what is refused."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from supple.rl import worlds
from supple.rl.envs import Step, make
from supple.rl.run import Run
from supple.rl.worlds import LARGEST_FACTORS, on_the_same_body, world_at


def run(problem, change, method="none", **changes):
    settings = {"steps": 100, "random_steps": 10, "evaluate_every": 10, "change": change, "change_every": 10}
    return Run.of(problem, method, [0], **settings | changes)


class Told:
    """Says which action it was given."""

    observation_size, action_size = 1, 3

    def begin(self, seed):
        return np.zeros(1, np.float32)

    def step(self, action):
        self.given = action
        return Step(np.zeros(1, np.float32), 0.0, terminal=False, last=False)


@pytest.mark.parametrize("size", [1, 3])
def test_actions_have_another_order_and_other_signs_after_each_change(size, monkeypatch):
    monkeypatch.setattr(worlds, "make", lambda name, limited: Told())
    monkeypatch.setattr(Told, "action_size", size)
    action = np.float32([0.1, 0.2, 0.3])[:size]

    def given(step, seed=0, method="none"):
        world = world_at(run("told", "actions", method), seed, step)
        world.step(action)
        assert world.original.given.dtype == np.float32
        return world.original.given.tolist()

    met = [given(step) for step in range(0, 100, 10)]
    assert met[0] == given(9) == action.tolist(), "the first stretch is the unchanged world"
    assert met[1] == given(19) == given(10, method="spectral")
    assert all(before != after for before, after in pairwise(met))
    for arranged in met:
        np.testing.assert_array_equal(np.sort(np.abs(arranged)), action)
    if size > 1:
        assert met != [given(step, seed=1) for step in range(0, 100, 10)]


def test_dynamics_are_drawn_relative_to_the_original_model():
    def model(step, seed=0):
        return world_at(run("cartpole-swingup", "dynamics"), seed, step)._environment.physics.model

    original = make("cartpole-swingup")._environment.physics.model
    factors = []
    for step in (0, 10, 20):
        changed = model(step)
        mass = changed.body_mass[1] / original.body_mass[1]
        np.testing.assert_allclose(changed.body_mass, mass * original.body_mass)
        np.testing.assert_allclose(changed.body_inertia, mass * original.body_inertia)
        np.testing.assert_allclose(changed.body_subtreemass, mass * original.body_subtreemass)
        factors.append(
            (
                mass,
                changed.geom_friction[0, 0] / original.geom_friction[0, 0],
                changed.dof_damping[0] / original.dof_damping[0],
            )
        )
        for factor, most in zip(factors[-1], LARGEST_FACTORS.values(), strict=True):
            assert 1 / most <= factor <= most
    assert factors[0] == (1, 1, 1)
    assert np.min(factors) < 1 < np.max(factors)
    assert len(np.unique(factors)) == 7
    assert model(10, seed=1).body_mass[1] != model(10).body_mass[1]
    assert model(19).body_mass[1] == model(10).body_mass[1]


def test_a_scale_of_one_changes_no_bit():
    def played(world):
        world.begin(0)
        return [world.step(np.ones(1, np.float32)).observation for _ in range(20)][-1]

    scaled = make("cartpole-swingup")
    scaled.scale(mass=1.0, friction=1.0, damping=1.0)
    expected = played(make("cartpole-swingup"))
    assert (played(scaled) == expected).all()
    scaled.scale(mass=2.0, friction=1.0, damping=1.0)
    assert (played(scaled) != expected).any()


@pytest.mark.parametrize("name", ["finger-spin", "finger-turn_easy"])
def test_damping_that_a_task_sets_in_each_episode_is_scaled_too(name):
    plain, scaled = make(name), make(name)
    scaled.scale(mass=1.0, friction=1.0, damping=1.4)
    for seed in range(2):
        for world in (plain, scaled):
            world.begin(seed)
        found, expected = (world._environment.physics.model.dof_damping for world in (scaled, plain))
        np.testing.assert_allclose(found, 1.4 * expected)


@pytest.mark.parametrize(("damping", "enough"), [(LARGEST_FACTORS["damping"], True), (2.0, False)])
def test_the_weakest_motor_is_strong_enough(damping, enough):
    """Pushing along the velocity gains the most energy: twice the damping is too much, the largest factor is not."""
    world = make("pendulum-swingup")
    world.scale(mass=LARGEST_FACTORS["mass"], friction=1.0, damping=damping)
    velocity, heights = world.begin(0)[2], []
    for _ in range(1000):
        height, _, velocity = world.step(np.float32([1 if velocity >= 0 else -1])).observation
        heights.append(height)
    assert (max(heights) > 0.99) == enough


def test_the_task_is_another_one_on_the_same_body_after_each_change(monkeypatch):
    sizes = {
        "walker-stand": (2, 1),
        "walker-walk": (2, 1),
        "walker-run": (2, 1),
        "walker-fly": (3, 1),
        "hopper-hop": (2, 1),
    }
    table = {
        name: lambda size=size: SimpleNamespace(observation_size=size[0], action_size=size[1])
        for name, size in sizes.items()
    }
    monkeypatch.setattr(worlds, "tasks", lambda: table)
    monkeypatch.setattr(worlds, "make", lambda name, limited: name)
    on_the_same_body.cache_clear()
    met = [world_at(run("walker-walk", "task"), 0, step) for step in range(0, 100, 10)]
    assert met[0] == "walker-walk"
    assert set(met) == {"walker-stand", "walker-walk", "walker-run"}
    assert all(before != after for before, after in pairwise(met))
    on_the_same_body.cache_clear()


@pytest.mark.parametrize(
    ("problem", "change", "message"),
    [
        ("Pendulum-v1", "dynamics", "whose masses and friction can change, got 'Pendulum-v1': use --change actions"),
        ("Pendulum-v1", "task", "with others on the same body, such as walker-walk, got 'Pendulum-v1': use --change"),
        ("fish-swim", "task", "with others on the same body, such as walker-walk, got 'fish-swim'"),
        ("fish-swum", "dynamics", "did you mean 'fish-swim'"),
        ("fish-swum", "task", "did you mean 'fish-swim'"),
    ],
)
def test_what_cannot_change_is_refused(problem, change, message):
    with pytest.raises(ValueError, match=message):
        world_at(run(problem, change), 0, 0)


def test_the_suite_has_tasks_on_the_same_body():
    assert on_the_same_body("acrobot-swingup") == ["acrobot-swingup", "acrobot-swingup_sparse"]
