"""Training: the same bits after a kill, members for themselves, resets on time, priming, evaluation."""

import dataclasses
import json
import math
import multiprocessing
import os
import signal
from pathlib import Path

import gymnasium
import numpy as np
import polars as pl
import pytest
import torch

from supple import cli
from supple.report.drawings import Drawings
from supple.report.standings import TUNED, standings
from supple.rl import agent, envs
from supple.rl import train as module
from supple.rl.charts import over_steps, with_steps
from supple.rl.methods import METHODS
from supple.rl.resets import PARTS, Resets
from supple.rl.run import Run
from supple.rl.train import Training, train
from supple.rl.worlds import world_at
from supple.runs.stats import by_task, last_tasks
from supple.runs.store import load

SMALL = {"hidden": (16,), "batch_size": 8, "random_steps": 20, "replay_ratio": 2, "capacity": 40}
EXEMPT_REFUSED = ("none", "resets", "hare-and-tortoise", "redo", "continual-backprop", "self-normalized-resets")
"""The methods that act on no single layers, and so can't leave out the heads."""
OPTIONS = {"steps": 60, "evaluate_every": 20, "episodes": 2, **SMALL}


class Short(gymnasium.Env):
    """Seven steps an episode, each worth 1 - |action|; the start is drawn."""

    observation_space = gymnasium.spaces.Box(-9, 9, (3,))
    action_space = gymnasium.spaces.Box(-2, 2, (2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.n, self.place = 0, self.np_random.normal(size=3).astype(np.float32)
        return self.place, {}

    def step(self, action):
        self.n += 1
        self.place = (self.place * 0.9 + np.resize(action, 3) * 0.1).astype(np.float32)
        return self.place, 1 - float(np.abs(action).mean()), False, self.n == 7, {}


@pytest.fixture(autouse=True)
def _short():
    gymnasium.register("Short-v0", Short, disable_env_checker=True)
    yield
    del gymnasium.registry["Short-v0"]


def run(method="none", seeds=(0,), problem="Short-v0", **changes):
    return Run.of(problem, method, seeds, **OPTIONS | changes)


def leaves(tree):
    return torch.utils._pytree.tree_leaves(tree)


def same(mine, theirs):
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(leaves(mine), leaves(theirs), strict=True)
    )


def checkpoint(folder):
    """All that is the same each time: not the seconds."""
    found = folder.checkpoint()
    return {"state": found.state, "rows": found.rows.rows()}


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("spectral", {}),
        ("redo", {"change": "actions", "change_every": 20, "evaluate_every": 10}),
        ("resets", {"resets": {"every": 25, "unit": "steps"}}),
    ],
)
def test_a_run_that_was_killed_ends_with_the_same_bits(method, changes, tmp_path):
    """The buffer has gone round by then. Each kill is in the middle of an episode; the second checkpoint, too, if the
    world changes: it is ten steps after a change, and episodes have seven."""
    config = run(method, seeds=(0, 1), **changes)
    train(config, root=str(tmp_path / "whole"))
    for killed_at in (25, 53):

        def report(step, killed_at=killed_at):
            if step == killed_at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(config, report, root=str(tmp_path / "pieces"))
    train(config, root=str(tmp_path / "pieces"))
    whole, pieces = (config.folder(str(tmp_path / name)) for name in ("whole", "pieces"))
    assert same(checkpoint(whole), checkpoint(pieces))
    assert Path(whole.path, "replay.bin").read_bytes() == Path(pieces.path, "replay.bin").read_bytes()
    assert checkpoint(whole)["state"]["counts"][:2] == [60, 82]
    assert whole.finished(config.evaluations)


def test_a_world_changes_after_the_evaluation_and_only_from_then_on(monkeypatch):
    """The first stretch is that of a run without changes; the episode that is cut off is not terminal."""
    made = []

    def noted(config, seed, step, limited=False):
        made.append((step, limited))
        return world_at(config, seed, step, limited=limited)

    monkeypatch.setattr(module, "world_at", noted)
    changes = {"evaluate_every": 10, "capacity": 60, "episodes": 1}
    changing, same_world = Training(run(**changes, change="actions", change_every=20)), Training(run(**changes))
    made.clear()
    rows = [[training.learn(part, lambda step: None) for part in range(6)] for training in (changing, same_world)]
    of_changing = made[:5]
    assert of_changing == [(9, True), (20, False), (29, True), (40, False), (49, True)], "tested before each change"
    buffers = [training.replay.latest(60) for training in (changing, same_world)]
    for mine, theirs in zip(*buffers, strict=True):
        assert torch.equal(mine[0, :20], theirs[0, :20])
    assert not torch.equal(buffers[0].observation[0, 20:], buffers[1].observation[0, 20:])
    assert [mine.equals(theirs) for mine, theirs in zip(*rows, strict=True)][:3] == [True, True, False]
    starts = (buffers[0].next_observation[0, :-1] != buffers[0].observation[0, 1:]).any(-1).nonzero().flatten() + 1
    assert starts.tolist() == [7, 14, 20, 27, 34, 40, 47, 54], "an episode has seven steps, or ends with its world"
    assert not buffers[0].terminal.any()
    assert len(changing.replay) == 60, "the buffer is kept"


def test_a_compiled_run_that_was_killed_ends_with_the_same_bits(tmp_path, monkeypatch):
    """In the form that is compiled, vectorized over the members; the compiler's part is tested with the agent."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(agent, "COMPILE_FROM", 1)
    config = run(steps=40)
    assert Training(config).compiled

    def report(step):
        if step == 33:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, report, root=str(tmp_path / "pieces"))
    for name in ("whole", "pieces"):
        train(config, root=str(tmp_path / name))
    whole, pieces = (config.folder(str(tmp_path / name)) for name in ("whole", "pieces"))
    assert same(checkpoint(whole), checkpoint(pieces))
    assert checkpoint(whole)["state"]["counts"][:2] == [40, 42]


def _train_in_a_process(config, root):
    torch.set_num_threads(1)
    train(config, lambda step: os.kill(os.getpid(), signal.SIGKILL) if step == 47 else None, root=root)


def test_a_process_that_is_killed_outright_in_the_middle_of_a_physics_episode(tmp_path):
    config = run("spectral", problem="cartpole-swingup", episodes=1, steps=60, evaluate_every=40)
    process = multiprocessing.get_context("spawn").Process(
        target=_train_in_a_process, args=(config, str(tmp_path / "a"))
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    for name in "ab":
        train(config, root=str(tmp_path / name))
    assert same(*(checkpoint(config.folder(str(tmp_path / name))) for name in "ab"))


def test_each_member_is_the_lone_agent_of_its_seed():
    """Its world, its actions and its minibatches to the bit, its networks to rounding."""
    many, alone = (Training(run("spectral", seeds)) for seeds in ((3, 5), (5,)))
    for _ in range(20):
        many.advance()
        alone.advance()
    assert (many.replay._rows[1] == alone.replay._rows[0]).all()
    assert (many.replay._rows[0] != many.replay._rows[1]).any()
    for _ in range(4):
        many.advance()
        alone.advance()
    np.testing.assert_allclose(many.replay._rows[1], alone.replay._rows[0], rtol=1e-4, atol=1e-5)
    for name, parameter in alone.agent.critic.parameters.items():
        torch.testing.assert_close(many.agent.critic.parameters[name][1:], parameter, rtol=1e-3, atol=1e-4)


def test_minibatches_and_noise_differ_between_members_and_steps():
    training = Training(run(seeds=(0, 1)))
    for _ in range(20):
        training.advance()
    drawn = []
    for step in (20, 21):
        drawn += list(training._minibatches(training._generators(module.Stream.MINIBATCH, step), 2))
    seen = [noise[:, member] for _, noise in drawn for member in (0, 1)]
    assert all((a != b).any() for i, a in enumerate(seen) for b in seen[:i])
    assert drawn[0][0].observation.shape == (2, 8, 3)


def test_no_update_before_enough_is_known():
    training = Training(run(seeds=(0,)))
    before = [parameter.clone() for parameter in training.agent.actor.parameters.values()]
    for _ in range(19):
        training.advance()
    assert training.updates == 0
    assert all(torch.equal(a, b) for a, b in zip(before, training.agent.actor.parameters.values(), strict=True))
    training.advance()
    assert training.updates == 2
    random = training.replay.latest(20).action[0]
    assert random.abs().max() <= 1
    assert random.std() == pytest.approx(3**-0.5, abs=0.15), "uniform"


def test_a_broken_member_stops_and_says_when(tmp_path):
    config = run("spectral", seeds=(0, 1))
    broken, whole = Training(config), Training(config)
    for step in range(60):
        broken.advance()
        whole.advance()
        if step == 40:
            broken.agent.critic.parameters["critics.0.1.weight"][0] = math.nan
    assert broken.stopped == {0: 42}  # its critic broke its actor in the updates of step 41
    assert (broken.replay._rows[1] == whole.replay._rows[1]).all()
    assert np.isfinite(broken.replay._rows).all(), "nor does what it did with these numbers enter the buffer"
    rows = {(member, metric): value for member, _, metric, value in broken.measure().rows()}
    assert (rows[0, "stopped"], rows[0, "diverged"], rows[1, "diverged"]) == (42, 1, 0)
    world, random, totals = envs.make("Short-v0"), module.generator(module.Stream.RANDOM_POLICY, 0, 60), []
    for k in range(2):
        world.begin(module.number(module.Stream.EVALUATION, 0, 60, k))
        actions = [random.uniform(-1, 1, 2).astype(np.float32) for _ in range(7)]
        totals.append(sum(world.step(action).reward for action in actions))
    assert rows[0, "return"] == pytest.approx(np.mean(totals)), "it counts as the random policy"
    assert rows[1, "return"] == {row[:3]: row[3] for row in whole.measure().rows()}[1, 2, "return"]


def test_a_diverged_agent_stays_in_every_mean(tmp_path, monkeypatch, capsys):
    """From step 30 on, the actions of one of two agents are not finite."""
    config, actions = run(seeds=(0, 1)), Training._actions

    def broken(training, observations):
        chosen = actions(training, observations)
        chosen[0, 0] = math.nan if training.step >= 30 else chosen[0, 0]
        return chosen

    monkeypatch.setattr(Training, "_actions", broken)
    train(config, root=str(tmp_path))
    rows = load(str(tmp_path))
    assert by_task(rows, "return")["seeds"].to_list() == [2, 2, 2]
    assert last_tasks(rows, "return")["diverged"].to_list() == [1]
    datasets = over_steps(rows, "return", "").to_dict()["datasets"].values()
    assert {point["seeds"] for points in datasets for point in points if "seeds" in point} == {2}
    cli.Results(runs=str(tmp_path))()
    said = "one agent has diverged: the return is that of random actions from then on"
    assert said in " ".join(capsys.readouterr().out.split())
    columns = rows.select("run", "member", "seed", *TUNED[:3], "tasks", "task", "metric", "value", step_size=0.0)
    (headline,) = standings(columns, Drawings(["none"])).headlines
    assert (headline.note, headline.ranking[0]["seeds"]) == (said.capitalize(), 2)


def test_without_a_compiler_a_long_run_takes_the_plain_path(monkeypatch):
    def refuse(function):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(agent, "COMPILE_FROM", 1)
    assert not Training(run("redo")).compiled, "it would not see activations"
    monkeypatch.setattr(torch, "compile", refuse)
    assert not Training(run()).compiled
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    assert Training(run()).compiled


def test_an_evaluation_against_playing_by_hand():
    training = Training(run(seeds=(0, 7), episodes=3))
    for _ in range(25):
        training.advance()
    state = training.state_dict()["plays"]
    found = {row[0]: row[3] for row in training.measure().rows() if row[2] == "return"}
    for index, seed in enumerate((0, 7)):
        totals = []
        for k in range(3):
            world, total, last = envs.make("Short-v0"), 0.0, False
            observation = world.begin(module.number(module.Stream.EVALUATION, seed, 25, k))
            while not last:
                mean, _ = training.agent.actor.population.member(index)(torch.from_numpy(observation))
                observation, reward, _, last = world.step(mean.tanh().detach().numpy())
                total += reward
            totals.append(total)
        assert found[index] == pytest.approx(np.mean(totals), rel=1e-4)
    assert training.state_dict()["plays"] == state, "it leaves the training's own episodes alone"


def test_training_returns_are_those_of_the_episodes():
    training = Training(run(seeds=(0,)))
    for _ in range(16):
        training.advance()
    rewards = training.replay.latest(16).reward[0]
    (row,) = (row for row in training.measure().rows() if row[2] == "training_return")
    assert row[3] == pytest.approx(float(rewards[:14].view(2, 7).sum(1).mean()))
    assert not [row for row in training.measure().rows() if row[2] == "training_return"]


def test_priming_is_so_many_updates_on_the_first_transitions(monkeypatch):
    monkeypatch.setattr(module, "PRIMED_ON", 10)
    training = Training(run(prime=7, steps=101, capacity=100, random_steps=100))
    for _ in range(10):
        training.advance()
    assert training.updates == 7
    assert training.step == len(training.replay) == 10


def test_priming_is_part_of_the_progress():
    config = run(prime=6, steps=120, capacity=120, random_steps=110, evaluate_every=120, episodes=1)
    done = []
    Training(config).learn(0, done.append)
    ratio = config.constants.replay_ratio
    assert done == sorted(done)
    assert (done[98], done[-1]) == (99, 120 + 6 / ratio)
    assert set(done) >= {99 + 1 + block for block in range(6 // ratio)}


# Resets.


def changed(resets, steps=1):
    """Which parts of a trained agent a reset changes, and its trainings before and after."""
    training = Training(run("resets", seeds=(0, 1)))
    for _ in range(30):
        training.advance()
    before = torch.utils._pytree.tree_map(lambda value: value.clone(), training.agent.state_dict())
    resets.reset(training.agent, [torch.Generator().manual_seed(seed) for seed in (1, 2)])
    after = training.agent.state_dict()
    parts = {
        "actor": (before["actor"]["parameters"], after["actor"]["parameters"]),
        "critic": (before["critic"]["parameters"], after["critic"]["parameters"]),
        "target": (before["target"], after["target"]),
        "temperature": (before["temperature"], after["temperature"]),
        "optimizer": (
            [before["actor"]["moments"], before["critic"]["moments"], before["temperature_moments"]],
            [after["actor"]["moments"], after["critic"]["moments"], after["temperature_moments"]],
        ),
    }
    return {name for name, (old, new) in parts.items() if not same(old, new)}, training.agent


@pytest.mark.parametrize("parts", [PARTS, ("actor",), ("critic", "target", "optimizer"), ("temperature", "optimizer")])
def test_a_reset_changes_the_parts_that_are_named(parts):
    found, agent = changed(Resets(parts=parts))
    assert found == set(parts)
    if "critic" in parts:
        assert same(agent.target, agent.critic.parameters)
        weights = agent.critic.parameters["critics.0.0.block0.0.weight"]
        assert (weights[0] != weights[1]).any()
        torch.testing.assert_close(
            weights @ weights.mT / 2 if weights.shape[1] <= weights.shape[2] else weights.mT @ weights / 2,
            torch.eye(min(weights.shape[1:])).expand(2, -1, -1),
            atol=1e-5,
            rtol=0,
        )
    if set(parts) == set(PARTS):
        assert not any(moment.any() for moment in leaves([agent.actor.moments, agent.critic.moments]))
        assert (agent.alpha == 1).all()


def test_a_reset_of_the_last_layers():
    _, agent = changed(Resets(layers=1))
    moved = {name for name, entry in agent.actor.moments.items() if not entry["exp_avg"].any()}
    assert moved == {"mean.weight", "mean.bias", "log_deviation.weight", "log_deviation.bias"}
    assert agent.critic.moments["critics.0.0.block0.0.weight"]["exp_avg"].any()
    assert not agent.critic.moments["critics.0.1.weight"]["exp_avg"].any()
    assert torch.equal(agent.target["critics.0.1.weight"], agent.critic.parameters["critics.0.1.weight"])


@pytest.mark.parametrize(("unit", "every", "expected"), [("steps", 15, [20, 30, 50]), ("updates", 25, [40, 50])])
def test_resets_come_after_evaluations_and_each_is_another(unit, every, expected, tmp_path, monkeypatch):
    """Two updates a step from step 20 on, and evaluations every ten steps of sixty: none follows the last of them."""
    found, drawn, judged = [], [], []
    measure, reset = Training.measure, Resets.reset

    def measured(training):
        judged.append(training.step)
        return measure(training)

    def noted(resets, agent, generators):
        reset(resets, agent, generators)
        found.append(judged[-1])
        drawn.append(agent.actor.parameters["mean.weight"].clone())

    monkeypatch.setattr(Training, "measure", measured)
    monkeypatch.setattr(Resets, "reset", noted)
    train(run("resets", evaluate_every=10, resets={"unit": unit, "every": every}), root=str(tmp_path))
    assert judged == [10, 20, 30, 40, 50, 60]
    assert found == expected
    assert not torch.equal(drawn[0], drawn[1])


def test_a_buffer_that_is_dropped_is_filled_before_updates_go_on():
    training = Training(run("resets", resets={"unit": "steps", "every": 30, "parts": ("actor", "buffer")}))
    for _ in range(30):
        training.advance()
    training.reset_if_due()
    assert len(training.replay) == 0
    updates = training.updates
    for _ in range(19):
        training.advance()
    assert training.updates == updates
    training.advance()
    assert training.updates == updates + 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "spectrl"}, "did you mean 'spectral'"),
        ({"preset": "d'oro"}, "did you mean 'doro'"),
        ({"method": "spectral", "resets": {"every": 5}}, "the method 'resets' for"),
        ({"method": "resets", "resets": {"every": 39}}, "an evaluation before each reset"),
        ({"method": "resets", "resets": {"layers": 3}}, "at most the 2 layers that the networks have, got 3"),
        ({"method": "resets", "resets": {"parts": ("actr",)}}, "parts among actor"),
        ({"method": "resets", "resets": {"parts": ("optimizer",)}}, "a part to reset .* got optimizer"),
        ({"method": "resets", "resets": {"parts": ()}}, "a part to reset .* got none"),
        ({"method": "resets", "resets": {"every": 0}}, "at least 1 layer, got every=0"),
        ({"method": "spectral", "strength": -1.0}, "a strength of spectral of at least 0, got -1"),
        ({"method": "support.extensions:Bare"}, "a strength for support.extensions:Bare, which has no default"),
        ({"method": "spectral", "options": {"targt": 1.0}}, "did you mean 'target'"),
        ({"method": "upgd", "options": {"noise": "much"}}, "noise of upgd to be like 0.001, got 'much'"),
        *(({"method": name, "exempt_heads": True}, f"exempt heads, got {name}") for name in EXEMPT_REFUSED),
        ({"matmul_precision": "midium"}, "did you mean 'medium'"),
        ({"method": "spectral", "actor_strength": math.inf}, "a strength of spectral of at least 0, got inf"),
        ({"method": "continual-backprop", "strength": 2.0}, "a strength of continual-backprop from 0 to 1.0, got 2"),
        ({"change": "actions"}, "--change and --change-every together, got actions and None: give both"),
        ({"change_every": 20}, "--change and --change-every together, got None and 20: give both"),
        ({"change": "action", "change_every": 20}, "did you mean 'actions'"),
        ({"change": "task", "change_every": 30}, "multiple of --evaluate-every, got 30 and 20"),
        ({"change": "task", "change_every": 0}, "multiple of --evaluate-every, got 0"),
        ({"change": "task", "change_every": 60}, "a change before the end, got one every 60 of 60 steps"),
        ({"steps": 19}, r"more steps than the 20 random ones .* got 19"),
        ({"steps": 0}, "steps of at least 1, got 0"),
        ({"evaluate_every": 0}, "to the next of at least 1, got 0"),
        ({"episodes": 10**9}, "episodes in an evaluation from 1 to 1,000, got 1,000,000,000"),
        ({"prime": -1}, "priming of at least 0, got -1"),
        ({"prime": 5}, "at least 100 random steps before priming, got 20: use more"),
        ({"capacity": 19}, "a buffer for the 20 random steps before the first update, got one for 19 transitions"),
        ({"seeds": ()}, "at least one seed"),
        ({"seeds": (0, -1)}, "seeds from 0 to 2,147,483,647, got -1"),
        ({"seeds": (2**31,)}, "seeds from 0 to 2,147,483,647"),
        ({"capacity": 7}, r"a buffer capacity \(at least a batch\) from 8 to 1,000,000,000, got 7"),
        ({"capacity": 10**12}, r"a buffer capacity \(at least a batch\) from 8"),
        ({"batch_size": 0}, "transitions in a batch of at least 1, got 0"),
        ({"random_steps": -1}, "random steps of at least 0, got -1"),
        ({"replay_ratio": 0}, "a replay ratio from 1 to 1,000, got 0"),
        ({"hidden": ()}, "hidden layers of at least 1, got 0"),
        ({"discount": math.nan}, "a discount from 0 to 1, got nan"),
        ({"critic_step_size": -1.0}, "critic_step_size of at least 0, got -1"),
        ({"bounded_by": "tan"}, "did you mean 'tanh'"),
    ],
)
def test_what_is_asked_for_must_make_sense(changes, message):
    with pytest.raises(ValueError, match=f"expected .*{message}" if "mean" not in message else message):
        run(**changes)


def test_what_does_not_work_is_told_before_anything_is_written(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="a folder on this machine, got 'memory://runs'"):
        train(run(), root="memory://runs")
    with pytest.raises(ValueError, match="a device of this machine, got 'cuda:99'"):
        train(run(), root=str(tmp_path), device="cuda:99")
    with pytest.raises(ValueError, match=r"a task of the suite, .* got 'Short-v0': use --change actions"):
        train(run(change="dynamics", change_every=20), root=str(tmp_path))
    for method, options in (("supple:FIRE", {}), ("shrink-and-perturb", {"variant": "task"})):
        with pytest.raises(ValueError, match=r"a method that acts in steps, got .* between tasks: choose another"):
            train(run(method, options=options), root=str(tmp_path))
    monkeypatch.setattr(Short, "step", lambda self, action: (np.float32([0, math.nan, 0]), 0.0, False, False, {}))
    with pytest.raises(ValueError, match=r"the environment 'Short-v0', got \[ 0. nan  0.\] .* correct the environment"):
        train(run(), root=str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_an_evaluation_ends_where_the_environment_never_does(monkeypatch):
    """Training goes on in its one episode."""
    monkeypatch.setattr(envs, "LONGEST_EPISODE", 12)
    monkeypatch.setattr(Short, "step", lambda self, action: (self.place, 1.0, False, False, {}))
    training = Training(run(inside=True))
    for _ in range(30):
        training.advance()
    assert {row[3] for row in training.measure().rows() if row[2] == "return"} == {12}
    assert (training.episodes[0].number, len(training.episodes[0].actions)) == (0, 30)


@pytest.mark.parametrize(
    ("method", "options"), [("redo", {"every": 5}), ("continual-backprop", None), ("self-normalized-resets", None)]
)
def test_looking_inside_changes_nothing(method, options):
    seen, unseen = Training(run(method, inside=True, options=options)), Training(run(method, options=options))
    for step in range(30):
        for training in (seen, unseen):
            training.advance()
            if step % 10 == 9:
                training.measure()
    assert same(seen.agent.state_dict(), unseen.agent.state_dict())


def test_new_units_are_drawn_as_the_networks_were():
    for method in ("redo", "continual-backprop", "self-normalized-resets"):
        for preset, is_orthogonal in (("paper", True), ("sb3", False)):
            mitigator = Training(run(method, preset=preset)).agent.critic.mitigator
            group = mitigator.groups[0]
            rows = torch.empty(group.size, group.fan_in)
            mitigator._initializers[group.name](rows, torch.Generator().manual_seed(1))
            is_it = torch.allclose(rows.mT @ rows, 2 * torch.eye(group.fan_in), atol=1e-5)  # a whole new layer's
            assert is_it == is_orthogonal
            assert is_orthogonal or 0.8 < rows.abs().max() * group.fan_in**0.5 <= 1, "torch's own"


def test_the_inside_has_the_step_size_of_the_last_update(tmp_path):
    """It needs an update right before the evaluation: none at step 10, the last of two at step 20, one at the end."""
    training = Training(run(inside=True, evaluate_every=10, steps=25))
    rows = [training.learn(part, lambda step: None) for part in range(3)]
    seen = [{row[2]: row[3] for row in part.rows()} for part in rows]
    assert "actor_effective_step_size" not in seen[0]
    assert 0 < seen[1]["actor_effective_step_size"] < seen[1]["critic_effective_step_size/critics.0.1"] * 100
    assert {"entropy", "critic_effective_step_size"} <= seen[1].keys() & seen[2].keys()


def test_updates_have_their_precision_and_evaluations_the_usual(monkeypatch):
    training = Training(run(matmul_precision="medium"))
    seen = {"update": set(), "act": set()}
    for name, names in seen.items():
        inner = getattr(training.agent, name)

        def noted(*inputs, inner=inner, names=names):
            names.add(torch.get_float32_matmul_precision())
            return inner(*inputs)

        monkeypatch.setattr(training.agent, name, noted)
    training.learn(1, lambda step: None)
    assert seen == {"update": {"medium"}, "act": {"highest"}}


def test_usual_settings_are_not_in_the_configuration():
    usual = run("spectral").config()
    assert "matmul_precision" not in usual
    assert "exempt_heads" not in usual
    assert usual["options"] == "{}"
    chosen = run("spectral", options={"one_sided": True}, exempt_heads=True, matmul_precision="medium").config()
    changed = {name: value for name, value in chosen.items() if usual.get(name) != value}
    assert changed == {"options": '{"exempt_heads": true, "one_sided": true}', "matmul_precision": "medium"}


def test_options_reach_the_methods_of_actor_and_critic():
    agent = Training(run("decoupled-spectral", options={"target": "initial"})).agent
    assert agent.actor.mitigator.target == agent.critic.mitigator.target == "initial"
    assert Training(run("upgd", options={"noise": 0.25})).agent.critic.mitigator.noise == 0.25


def test_agents_have_default_strengths_of_their_own():
    assert [run(name).strength for name in ("upgd", "continual-backprop")] == [1.0, 1e-4]
    assert [run("decoupled-spectral", exempt_heads=exempt).exempt_heads for exempt in (None, False)] == [True, False]
    assert [run("decoupled-spectral").strength, run("spectral").exempt_heads] == [0.01, False]


LAYERED = [name for name in METHODS if name not in EXEMPT_REFUSED]


@pytest.mark.parametrize("method", LAYERED)
def test_exempt_heads_are_left_out(method):
    exempt, usual = (Training(run(method, exempt_heads=exempt, preset="doro")).agent for exempt in (True, False))
    heads = {"mean.weight", "mean.bias", "log_deviation.weight", "log_deviation.bias"}
    acted_on = exempt.actor.mitigator.parameters.keys()
    assert acted_on == usual.actor.mitigator.parameters.keys() - heads
    assert "body.block0.0.weight" in acted_on
    acted_on = exempt.critic.mitigator.parameters.keys()
    assert acted_on == usual.critic.mitigator.parameters.keys() - {
        f"critics.{critic}.1.{name}" for critic in range(2) for name in ("weight", "bias")
    }


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(method):
    """And draws nothing from a global generator, of which a checkpoint of an agent therefore holds no state."""
    state = torch.get_rng_state()
    resets = {"every": 40} if method == "resets" else None
    training = Training(run(method, seeds=(0, 1), resets=resets, inside=True))
    for _ in range(24):
        training.advance()
    training.measure()
    Resets().reset(training.agent, [torch.Generator().manual_seed(seed) for seed in (1, 2)])
    assert torch.equal(torch.get_rng_state(), state)
    assert training.updates == training.run._updates_until(24) == 10
    assert not training.stopped
    assert all(parameter.isfinite().all() for parameter in training.agent.actor.parameters.values())


def test_the_configuration_is_plain_and_whole():
    resets = run("resets", seeds=(0, 1), actor_strength=2.0, resets={"parts": ("actor", "critic")})
    assert resets.actor_strength == 0, "a strength for the other methods of a command changes no folder of this one"
    config = dataclasses.replace(resets, actor_strength=2.0)
    found = config.config()
    assert found["hidden"] == "16"
    assert json.loads(found["options"]) == {"actor_strength": 2.0, "parts": "actor critic"}
    assert found["resets"] == ["every: 2560000", "unit: updates", "parts: actor critic", "layers: None"]
    assert (run("none").config()["options"], run("none").config()["resets"]) == ("{}", [])
    assert "change" not in run("none").config()
    assert "change_every" not in run("none").config(), "older folders keep their names"
    changed = run("none", change="actions", change_every=20).config()
    assert (changed["change"], changed["change_every"]) == ("actions", 20)
    for other in (
        dataclasses.replace(config, constants=dataclasses.replace(config.constants, discount=0.9)),
        dataclasses.replace(config, actor_strength=1.0),
        dataclasses.replace(config, resets=dataclasses.replace(config.resets, every=5)),
    ):
        assert config.folder("runs").name != other.folder("runs").name


def test_what_is_stamped_as_the_papers_scale():
    paper = Run.of("quadruped-run", "spectral", [0], steps=1_000_000)
    assert (paper.scale, dataclasses.replace(paper, prime=1).scale) == ("paper", "quick")
    assert Run.of("dog-run", "none", [0], steps=1_000_000, change="task", change_every=100_000).scale == "quick"
    assert Run.of("dog-run", "resets", [0], steps=1_000_000, capacity=250_000, inside=True).scale == "paper"
    assert Run.of("dog-run", "resets", [0], steps=1_000_000, preset="sb3").scale == "quick"
    assert Run.of("dog-run", "resets", [0], steps=500_000).scale == "quick"


def test_a_folder_of_runs_is_read_like_any_other(tmp_path):
    """Tasks of the store are the stretches between evaluations, the last of which may be shorter."""
    config = run("resets", seeds=(4, 2), steps=20, evaluate_every=8)
    train(config, root=str(tmp_path))
    rows = with_steps(load(str(tmp_path)))
    assert set(rows["metric"]) == {"return", "training_return", "diverged"}
    returns = rows.filter(pl.col("metric") == "return")
    assert returns.select("seed", "task", "step").rows() == [
        (seed, task, step) for task, step in enumerate((8, 16, 20)) for seed in (4, 2)
    ]
    assert set(returns.select("tasks", "strength", "scale", "options").rows()) == {
        (3, 0.0, "quick", config.config()["options"])
    }
    assert config.folder(str(tmp_path)).finished(3)


def cut_short(path):
    os.truncate(path, 100)


def changed_in_place(path):
    content = bytearray(path.read_bytes())
    content[40] ^= 1  # in a row that the checkpoint counts
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [Path.unlink, cut_short, changed_in_place])
def test_a_run_that_lost_its_buffer_starts_again(damage, tmp_path):
    """Also where it is killed once more before its next checkpoint: it does not go on from the old one."""
    config = run("none", steps=40, evaluate_every=20)

    def stop_at(moment):
        def stop(step):
            if step == moment:
                raise KeyboardInterrupt

        return stop

    train(config, root=str(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        train(config, stop_at(30), root=str(tmp_path / "lost"))
    damage(tmp_path / "lost" / config.folder(str(tmp_path)).name / "replay.bin")
    with (
        pytest.warns(UserWarning, match="expected the replay buffer .* the run restarts"),
        pytest.raises(KeyboardInterrupt),
    ):
        train(config, stop_at(10), root=str(tmp_path / "lost"))
    assert not config.folder(str(tmp_path / "lost")).checkpoint()
    train(config, root=str(tmp_path / "lost"))
    assert same(*(checkpoint(config.folder(str(tmp_path / name))) for name in ("whole", "lost")))


def test_a_reset_keeps_the_memory_of_what_is_not_reset():
    _, agent = changed(Resets(parts=("critic", "target", "optimizer")))
    assert not any(moment.any() for moment in leaves(agent.critic.moments))
    assert all(entry["exp_avg_sq"].any() for entry in agent.actor.moments.values())


def test_every_update_of_priming_has_minibatches_of_its_own(monkeypatch):
    monkeypatch.setattr(module, "PRIMED_ON", 10)
    training, seen = Training(run(prime=6, steps=101, capacity=100, random_steps=100)), []
    monkeypatch.setattr(training.agent, "update", lambda batch, noise: seen.append(noise))
    for _ in range(10):
        training.advance()
    assert len(seen) == 6
    assert all((a != b).any() for i, a in enumerate(seen) for b in seen[:i])


def test_who_has_stopped_is_kept():
    training, other = Training(run(seeds=(0, 1))), Training(run(seeds=(0, 1)))
    training.stopped = {1: 3}
    other.load_state_dict(training.state_dict())
    assert other.stopped == {1: 3}


def test_who_has_stopped_is_not_looked_inside():
    training = Training(run(seeds=(0, 1), inside=True))
    for _ in range(22):
        training.advance()
    training.stopped = {1: 3}
    assert {row[0] for row in training.measure().rows() if row[2] == "entropy"} == {0}


def test_actors_may_have_a_strength_of_their_own():
    agent = Training(run("spectral", strength=1e-3, actor_strength=1e-2)).agent
    assert (agent.actor.mitigator.strength, agent.critic.mitigator.strength) == (1e-2, 1e-3)


def test_priming_and_training_draw_from_streams_of_their_own(monkeypatch):
    monkeypatch.setattr(module, "PRIMED_ON", 10)
    used, generator = [], module.generator
    monkeypatch.setattr(
        module, "generator", lambda stream, *counters: used.append((stream, *counters)) or generator(stream, *counters)
    )
    training = Training(run(prime=4, steps=102, capacity=100, random_steps=100))
    for _ in range(102):
        training.advance()
    drawn = {stream for stream, *_ in used} - {module.Stream.EXPLORATION}
    assert drawn == {module.Stream.PRIMING, module.Stream.MINIBATCH}
    assert len(set(used)) == len(used)


def test_a_reset_of_the_last_layers_leaves_the_others_of_the_target():
    """They are still the slow average, not a copy of the critic."""
    _, agent = changed(Resets(layers=1))
    name = "critics.0.0.block0.0.weight"
    assert not torch.equal(agent.target[name], agent.critic.parameters[name])


def test_without_an_update_since_the_last_evaluation_there_is_no_step_size():
    """The buffer that is dropped at step 30 is not full enough at step 40: what was kept before step 30 is past."""
    resets = {"unit": "steps", "every": 30, "parts": ("actor", "buffer")}
    training = Training(run("resets", inside=True, evaluate_every=10, steps=50, resets=resets))
    metrics = [set(training.learn(part, lambda step: None)["metric"]) for part in range(5)]
    assert ["actor_effective_step_size" in seen for seen in metrics] == [False, True, True, False, True]


def test_updates_of_priming_count_for_the_schedule_of_resets():
    """At step 100 there are two usual updates; with the 1,000 of priming the first reset is due."""
    options = {"random_steps": 100, "capacity": 200, "steps": 150, "evaluate_every": 100}
    for prime, is_reset in ((0, False), (1000, True)):
        asked = run("resets", prime=prime, resets={"unit": "updates", "every": 500}, **options)
        assert (asked.updates, asked.is_reset) == (102 + prime, is_reset)


def test_who_breaks_in_the_last_update_before_an_evaluation_is_found_by_it():
    """No action of it is taken: its return is that of random actions."""
    training = Training(run(seeds=(0, 1)))
    for _ in range(20):
        training.advance()
    for parameter in training.agent.actor.parameters.values():
        parameter[1] = torch.nan
    rows = training.measure()
    found = {(member, metric): value for member, _, metric, value in rows.rows()}
    assert (found[0, "diverged"], found[1, "diverged"], found[1, "stopped"]) == (0, 1, 20)
    assert all(math.isfinite(value) for value in found.values())
