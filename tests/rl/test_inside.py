"""The inside view against closed forms and against one member at a time."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from supple.rl import inside
from supple.rl.envs import Step
from supple.rl.presets import Constants
from supple.rl.sac import SAC, Batch

SMALL = Constants(hidden=(16, 16))


@pytest.fixture
def agent():
    return SAC(5, 3, SMALL, [0, 1])


@pytest.fixture
def given():
    shape = 2, 32
    batch = Batch(
        torch.randn(*shape, 5), torch.rand(*shape, 3), torch.randn(shape), torch.zeros(shape), torch.randn(*shape, 5)
    )
    return batch, torch.randn(2, *shape, 3)


def test_every_number_by_hand(agent, given):
    before = copy.deepcopy(agent.state_dict())
    found = inside.networks(agent, *given)
    for mine, theirs in zip(
        torch.utils._pytree.tree_leaves(before), torch.utils._pytree.tree_leaves(agent.state_dict()), strict=True
    ):
        assert torch.equal(mine, theirs), "it only looks"
    batch, noise = given
    for index in range(2):
        actor, critic = agent.actor.population.member(index), agent.critic.population.member(index)
        squares = sum(float(parameter.detach().square().sum()) for parameter in actor.parameters())
        assert found["actor_weight_norm"][index] == pytest.approx(squares**0.5, rel=1e-5)
        largest = max(float(torch.linalg.matrix_norm(p.detach(), 2)) for p in critic.parameters() if p.ndim == 2)
        assert found["critic_spectral_norm"][index] == pytest.approx(largest, rel=1e-4)
        head = float(torch.linalg.matrix_norm(critic.critics[0][1].weight.detach(), 2))
        assert found["critic_spectral_norm/critics.0.1"][index] == pytest.approx(head, rel=1e-4)

        target = {name: value[index] for name, value in agent.target.items()}
        policy = {name: value[index] for name, value in agent.actor.parameters.items()}
        part = Batch(*(each[index] for each in batch))
        loss, _ = agent.critic_loss(critic, target, policy, agent.alpha[index], part, noise[0, index])
        loss.backward()
        squares = sum(float(parameter.grad.square().sum()) for parameter in critic.parameters())
        assert found["critic_gradient_norm"][index] == pytest.approx(squares**0.5, rel=1e-4)

        hidden = actor.body(part.observation).detach()
        shares = torch.linalg.svdvals(hidden) / torch.linalg.svdvals(hidden).sum()
        rank = (-(shares * shares.clamp_min(1e-30).log()).sum()).exp()
        assert found["actor_effective_rank"][index] == pytest.approx(float(rank), rel=1e-3)

        mean, log_deviation = actor(part.observation)
        policy = torch.distributions.Normal(mean, log_deviation.exp())
        raw = mean + log_deviation.exp() * noise[1, index]
        log_probability = (policy.log_prob(raw) - (1 - raw.tanh() ** 2).log()).sum(-1)
        assert found["entropy"][index] == pytest.approx(-float(log_probability.mean().detach()), rel=1e-3)
    assert found["temperature"].tolist() == [1, 1]


def test_the_rank_is_the_mean_over_critics(given):
    agent = SAC(5, 3, dataclasses.replace(SMALL, critics=2), [0, 1])
    found, (batch, _) = inside.networks(agent, *given), given
    for index in range(2):
        critic, ranks = agent.critic.population.member(index), []
        for each in critic.critics:
            hidden = each[0](torch.cat([batch.observation[index], batch.action[index]], -1)).detach()
            shares = torch.linalg.svdvals(hidden) / torch.linalg.svdvals(hidden).sum()
            ranks.append(float((-(shares * shares.clamp_min(1e-30).log()).sum()).exp()))
        assert abs(ranks[0] - ranks[1]) > 0.01
        assert found["critic_effective_rank"][index] == pytest.approx(sum(ranks) / 2, rel=1e-3)


def test_effective_step_sizes_by_hand(agent, given):
    """Of one update, network by network; a member whose weights are twice as large has half of it."""
    before = inside.weights(agent)
    members = [copy.deepcopy(agent.actor.population.member(index)) for index in range(2)]
    agent.update(*given)
    found = inside.effective_step_sizes(agent, before)
    assert {name for name in found if name.startswith("actor")} == {"actor_effective_step_size"} | {
        f"actor_effective_step_size/{layer}" for layer in ("body.block0.0", "body.block1.0", "mean", "log_deviation")
    }
    for index, old in enumerate(members):
        new = agent.actor.population.member(index)
        vectors = [torch.nn.utils.parameters_to_vector(network.parameters()).detach() for network in (old, new)]
        overall = (vectors[1] - vectors[0]).norm() / vectors[0].norm()
        assert found["actor_effective_step_size"][index] == pytest.approx(float(overall), rel=1e-4)
        layer = (new.mean.weight - old.mean.weight).norm() / old.mean.weight.norm()
        assert found["actor_effective_step_size/mean"][index] == pytest.approx(float(layer.detach()), rel=1e-4)
    doubled = {network: {name: 2 * p for name, p in parameters.items()} for network, parameters in before.items()}
    for network, learner in (("actor", agent.actor), ("critic", agent.critic)):
        for name, p in learner.parameters.items():
            p.add_(before[network][name])
    for name, value in inside.effective_step_sizes(agent, doubled).items():
        torch.testing.assert_close(value, found[name] / 2, rtol=1e-3, atol=1e-6)


def test_dormant_units_are_counted(agent, given):
    whole = inside.networks(agent, *given)["critic_dormant"]
    agent.critic.parameters["critics.0.0.block1.1.bias"][1] = -100.0
    assert inside.networks(agent, *given)["critic_dormant"][1] >= 0.5
    assert inside.networks(agent, *given)["critic_dormant"][0] == whole[0]


def test_overestimation_of_a_known_world():
    """Three rewards of 100 with bonuses; values that are right, and twice too high."""
    returns = [100 + 0.5 * (4 + 100 + 0.5 * (6 + 100)), 100 + 0.5 * (6 + 100), 100]
    gains = [(100.0, 2.0), (100.0, 4.0), (100.0, 6.0)]
    assert inside.relative_error(returns, gains, 0.5) == pytest.approx(0)
    assert inside.relative_error([2 * value for value in returns], gains, 0.5) == pytest.approx(1)
    assert inside.relative_error([5.0], [(0.0, 1.0)], 0.5) == pytest.approx(0.5), "small returns are not divided by"
    many = [(1.0, 0.0)] * 1000
    assert inside.relative_error([0.0] * 350 + [1e9] * 650, many, 0.0) == pytest.approx(-0.1)


@pytest.mark.parametrize("steps", [200, 1000])
@pytest.mark.parametrize("reward", [-1.0, 1.0])
def test_a_perfect_critic_does_not_overestimate_in_an_episode_that_is_cut_off(steps, reward):
    """The same reward in each step for ever: its value is 100 times as large."""
    values, gains = [100 * reward] * steps, [(reward, 0.0)] * steps
    assert inside.relative_error(values, gains, 0.99, rest=100 * reward) == pytest.approx(0, abs=1e-9)
    cut = inside.relative_error(values, gains, 0.99)  # as if its end were a terminal state
    assert abs(cut) > 1.5 if steps == 200 else abs(cut) < 0.02


@pytest.mark.parametrize("terminal", [True, False])
def test_overestimation_in_play(agent, terminal):
    """Against the same episode by hand: rewards of 30, two steps, α = 1."""
    seen = []

    class World:
        observation_size, action_size = 5, 3

        def begin(self, seed):
            self.n = 0
            return np.full(5, seed, np.float32)

        def step(self, action):
            self.n += 1
            seen.append(action)
            return Step(np.full(5, self.n, np.float32), 30.0, terminal=terminal and self.n == 2, last=self.n == 2)

    found = inside.overestimation(agent, 1, World(), 7, np.random.default_rng(0))
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 3), np.float32))
    actor, critic = agent.actor.population.member(1), agent.critic.population.member(1)
    states = torch.tensor([7.0, 1.0, 2.0])[:, None].expand(3, 5)
    mean, log_deviation = actor(states)
    actions = torch.tanh(mean + log_deviation.exp() * noise)
    torch.testing.assert_close(actions[:2].detach(), torch.from_numpy(np.stack(seen)))
    values = critic(states, actions).squeeze(-1)
    gaussian = torch.distributions.Normal(mean, log_deviation.exp())
    bonus = -(gaussian.log_prob(actions.atanh()) - (1 - actions**2).log()).sum(-1)
    last = 30 + (0.0 if terminal else 0.99 * (values[2] + bonus[2]))
    expected = torch.stack([30 + 0.99 * (last + bonus[1]), torch.as_tensor(last)])
    assert found == pytest.approx(float(((values[:2] - expected) / expected.abs()).mean().detach()), rel=1e-3)


def test_overestimation_takes_the_smaller_critic():
    agent = SAC(5, 3, Constants(hidden=(16, 16), critics=2), [0])

    class OneStep:
        action_size = 3

        def begin(self, seed):
            return np.ones(5, np.float32)

        def step(self, action):
            self.action = torch.from_numpy(action)
            return Step(np.ones(5, np.float32), 30.0, terminal=True, last=True)

    world = OneStep()
    found = inside.overestimation(agent, 0, world, 7, np.random.default_rng(0))
    values = agent.critic.population.member(0)(torch.ones(5), world.action)
    assert found == pytest.approx((float(values.min().detach()) - 30) / 30, rel=1e-4)


class TwoSteps:
    """An episode of two steps."""

    action_size = 3

    def begin(self, seed):
        self.n = 0
        return np.ones(5, np.float32)

    def step(self, action):
        self.n += 1
        return Step(np.ones(5, np.float32), 30.0, terminal=self.n == 2, last=self.n == 2)


def test_overestimation_has_the_temperature_of_the_member():
    agent, alone = SAC(5, 3, SMALL, [0, 1]), SAC(5, 3, SMALL, [1])
    agent.temperature["logarithm"].copy_(torch.tensor([0.0, 3.0]))
    alone.temperature["logarithm"].fill_(3.0)
    found = [
        inside.overestimation(each, member, TwoSteps(), 7, np.random.default_rng(0))
        for each, member in ((agent, 1), (alone, 0))
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-4)
