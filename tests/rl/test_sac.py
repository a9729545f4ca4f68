"""Soft actor-critic on worlds whose answer is known, and against a transcription for one agent."""

import dataclasses
import math
from functools import partial

import pytest
import torch
from scipy.integrate import quad
from torch._dynamo.testing import CompileCounterWithBackend

from oracles.sac import NaiveSAC
from supple import ReDo, SpectralRegularizer
from supple.rl.presets import PRESETS, Constants
from supple.rl.sac import SAC, Batch, squashed
from supple.runs.streams import Stream, number
from supple.training.learner import Learner
from support.waits import Waits

SMALL = Constants(hidden=(32, 32), actor_step_size=1e-2, critic_step_size=1e-2, averaging=0.2)
GREEDY = dataclasses.replace(SMALL, temperature=1e-6, temperature_step_size=0.0)


def world(*, members=1, size=64, observation=None, reward=1.0, terminal=1.0, following=0.0):
    """One minibatch of a world that one line describes; numbers fill the batch."""
    shape = members, size
    start = torch.zeros(*shape, 1) if observation is None else observation
    action = torch.rand(*shape, 1) * 2 - 1
    given = reward(start, action) if callable(reward) else reward
    filled = [torch.as_tensor(value, dtype=torch.float32).expand(shape) for value in (given, terminal)]
    return Batch(start, action, *filled, torch.as_tensor(following, dtype=torch.float32).expand(*shape, 1))


def trained(agent, batches, updates):
    for _ in range(updates):
        batch = batches()
        agent.update(batch, torch.randn(2, *batch.action.shape))
    return agent


def value(agent, observation):
    """Q of member 0 at an observation, mean over actions."""
    parameters = {name: tensor[0] for name, tensor in agent.critic.parameters.items()}
    return agent.critic(parameters, torch.full((50, 1), float(observation)), torch.linspace(-1, 1, 50)[:, None]).mean()


def test_a_world_of_one_step_is_worth_its_reward():
    agent = trained(SAC(1, 1, GREEDY, [0]), world, 100)
    assert value(agent, 0) == pytest.approx(1, abs=0.02)


def test_two_steps_are_worth_the_discount():
    """The reward 1 comes in the second step, from observation 1."""

    def batch():
        second = (torch.rand(1, 64, 1) < 0.5).float()
        ends = second.squeeze(-1)
        return world(observation=second, reward=ends, terminal=ends, following=1.0)

    agent = trained(SAC(1, 1, dataclasses.replace(GREEDY, discount=0.7), [0]), batch, 200)
    assert value(agent, 1) == pytest.approx(1, abs=0.03)
    assert value(agent, 0) == pytest.approx(0.7, abs=0.03)


def test_time_that_is_up_is_no_end():
    """A reward of 1 for ever is worth 1 / (1 - γ), however short the episodes are."""
    constants = dataclasses.replace(GREEDY, discount=0.5)
    assert value(trained(SAC(1, 1, constants, [0]), lambda: world(terminal=0.0), 200), 0) == pytest.approx(2, abs=0.05)


def test_the_entropy_of_what_follows_counts():
    """Without reward, a value is the discounted entropy bonus: α γ H for a world that ends after the next action."""
    constants = dataclasses.replace(SMALL, temperature=0.5, temperature_step_size=0.0, actor_step_size=0.0)

    def batch():
        second = (torch.rand(1, 64, 1) < 0.5).float()
        return world(observation=second, reward=0.0, terminal=second.squeeze(-1), following=1.0)

    agent = trained(SAC(1, 1, constants, [0]), batch, 250)
    policy = {name: tensor[0] for name, tensor in agent.actor.parameters.items()}
    policy = agent.actor(policy, torch.ones(20_000, 1))
    entropy = -squashed(policy, torch.randn(20_000, 1))[1].mean()
    assert value(agent, 0) == pytest.approx(0.5 * 0.99 * float(entropy), abs=0.05)


def test_the_best_action_follows_the_observation():
    def batch():
        where = torch.rand(1, 128, 1) * 1.6 - 0.8
        return world(size=128, observation=where, reward=lambda here, action: -((here - action) ** 2).squeeze(-1))

    agent = trained(SAC(1, 1, GREEDY, [0]), batch, 300)
    where = torch.linspace(-0.7, 0.7, 15)[None, :, None]
    assert (agent.act(where) - where).abs().mean() < 0.1


@pytest.mark.parametrize("loss", ["temperature", "logarithm"])
def test_the_temperature_brings_the_entropy_to_its_target(loss):
    def batch():
        return world(reward=lambda here, action: -(action**2).squeeze(-1))

    constants = dataclasses.replace(SMALL, temperature_step_size=3e-2, temperature_loss=loss, temperature=0.1)
    agent = trained(SAC(1, 1, constants, [0]), batch, 400)
    policy = {name: tensor[0] for name, tensor in agent.actor.parameters.items()}
    policy = agent.actor(policy, torch.zeros(20_000, 1))
    entropy = -squashed(policy, torch.randn(20_000, 1))[1].mean()
    assert agent.target_entropy == -0.5
    assert entropy == pytest.approx(-0.5, abs=0.15)


@pytest.mark.parametrize(("mean", "log_deviation"), [(0.0, 0.0), (0.7, -1.0), (-2.0, 0.5), (3.0, -2.0)])
def test_the_squashed_gaussians_density(mean, log_deviation):
    """Its distribution function, integrated numerically from the log-probability, is the Gaussian's at artanh."""
    mean, log_deviation = (torch.tensor([value], dtype=torch.float64) for value in (mean, log_deviation))

    def density(action):
        noise = (torch.atanh(torch.tensor([action], dtype=torch.float64)) - mean) / log_deviation.exp()
        found, log_probability = squashed((mean, log_deviation), noise)
        assert found.item() == pytest.approx(action)
        return log_probability.exp().item()

    gaussian = torch.distributions.Normal(mean, log_deviation.exp())
    for low, high in [(-0.9, 0.1), (0.1, 0.6), (0.6, 0.995)]:
        ends = [gaussian.cdf(torch.atanh(torch.tensor([end], dtype=torch.float64))).item() for end in (low, high)]
        assert quad(density, low, high, limit=200)[0] == pytest.approx(ends[1] - ends[0], abs=1e-7)


def test_the_log_probability_stays_finite_where_tanh_is_flat():
    mean = torch.tensor([[40.0], [-40.0]], requires_grad=True)
    _, log_probability = squashed((mean, torch.full((2, 1), -10.0)), torch.zeros(2, 1))
    log_probability.sum().backward()
    assert mean.grad.isfinite().all()
    assert log_probability.isfinite().all()
    assert log_probability[0].item() == pytest.approx(log_probability[1].item(), abs=1e-4)


# Against the transcription.


def batches(members, count, observations=5, actions=3, size=16):
    for _ in range(count):
        shape = members, size
        yield (
            Batch(
                torch.randn(*shape, observations),
                torch.rand(*shape, actions) * 2 - 1,
                torch.randn(*shape),
                (torch.rand(shape) < 0.2).float(),
                torch.randn(*shape, observations),
            ),
            torch.randn(2, *shape, actions),
        )


def spectral(network, decoupled=False):
    return SpectralRegularizer(network, strength=1e-2, decoupled=decoupled)


def parameters_of(network):
    return {name: parameter.detach() for name, parameter in network.named_parameters()}


@pytest.fixture
def double():
    """New tensors are float64: Adam makes rounding of small gradients large, by other amounts on other processors."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("path", ["autograd", "transform"])
@pytest.mark.parametrize("mitigate", [None, spectral], ids=["none", "spectral"])
@pytest.mark.parametrize("preset", PRESETS)
def test_ten_updates_as_the_transcription_makes_them(preset, mitigate, path, monkeypatch, device):
    """Each member as an agent of its own on the CPU, whichever way the gradients are found."""
    if path == "transform":
        monkeypatch.setattr(Learner, "_one_by_one", Learner._vectorized)
    constants = dataclasses.replace(Constants(**PRESETS[preset]), hidden=(16, 16), averaging=0.05)
    methods = {"actor_method": mitigate, "critic_method": mitigate} if mitigate else {}
    agent = SAC(5, 3, constants, [0, 1], device=device, **methods)
    naive = []
    for index in range(2):
        actor, critic = (learner.population.member(index).cpu() for learner in (agent.actor, agent.critic))
        naive.append(NaiveSAC(actor, critic, constants, 3, mitigate))
    for batch, noise in batches(2, 10):
        agent.update(Batch(*(part.to(device) for part in batch)), noise.to(device))
        for index, alone in enumerate(naive):
            alone.update(Batch(*(part[index] for part in batch)), noise[:, index])
    for index, alone in enumerate(naive):
        found = agent.actor.parameters, agent.critic.parameters, agent.target
        expected = alone.actor, alone.critic, alone.target
        for mine, theirs in zip(found, expected, strict=True):
            mine = {name: tensor[index].cpu() for name, tensor in mine.items()}
            torch.testing.assert_close(mine, parameters_of(theirs), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(agent.temperature["logarithm"][index].cpu(), alone.log_alpha.detach())
    assert not torch.equal(found[0]["mean.weight"][0], found[0]["mean.weight"][1])


def test_the_compiled_update_is_the_plain_one_in_a_single_graph(monkeypatch):
    """Traced, transformed and made functional as for the compiler proper, which would take half a minute.

    A full graph reads nothing on the host, and the one graph serves all values of a strength that is a tensor.
    """
    counter = CompileCounterWithBackend("aot_eager")
    in_one_graph = partial(torch.compile, backend=counter, fullgraph=True)
    monkeypatch.setattr(torch, "compile", lambda function, options: in_one_graph(function))
    constants = Constants(hidden=(8,))
    methods = {"actor_method": partial(spectral, decoupled=True), "critic_method": spectral}
    plain, compiled = (SAC(5, 3, constants, [0, 1], compiled=choice, **methods) for choice in (False, True))
    for step, (batch, noise) in enumerate(batches(2, 4)):
        for agent in (plain, compiled):
            agent.actor.mitigator.strength = torch.tensor([0.1 * step, 1.0])
            agent.critic.mitigator.strength = torch.tensor(0.01 / (step + 1))
            agent.update(batch, noise)
    torch.testing.assert_close(compiled.state_dict(), plain.state_dict(), rtol=1e-4, atol=1e-5)
    assert counter.frame_count == 1


@pytest.mark.parametrize("preset", PRESETS)
def test_no_update_waits_for_the_device(preset):
    constants = dataclasses.replace(Constants(**PRESETS[preset]), hidden=(8,))
    agent = SAC(5, 3, constants, [0, 1], actor_method=spectral, critic_method=spectral)
    for batch, noise in batches(2, 3):
        there = torch.utils._pytree.tree_leaves((agent.state_dict(), agent.actor.parameters, agent.critic.parameters))
        with Waits([*batch, noise, agent.temperature["logarithm"], *there]) as waits:
            agent.update(batch, noise)
        assert waits.found == []


def test_a_lone_agent_is_the_member_of_its_seed():
    many, alone = SAC(5, 3, SMALL, [3, 8, 9]), SAC(5, 3, SMALL, [8])
    for batch, noise in batches(3, 5):
        many.update(batch, noise)
        alone.update(Batch(*(part[1:2] for part in batch)), noise[:, 1:2])
    for name in ("actor", "critic"):
        mine, theirs = getattr(many, name).parameters, getattr(alone, name).parameters
        torch.testing.assert_close({key: value[1:2] for key, value in mine.items()}, theirs, rtol=1e-5, atol=1e-6)
    first = SAC(5, 3, SMALL, [8]).actor.parameters
    assert all(torch.equal(first[key], SAC(5, 3, SMALL, [1, 8]).actor.parameters[key][1:]) for key in first)


def test_a_member_that_breaks_leaves_its_neighbours_alone():
    broken, whole = SAC(5, 3, SMALL, [0, 1]), SAC(5, 3, SMALL, [0, 1])
    broken.actor.parameters["mean.weight"][0] = math.nan
    for batch, noise in batches(2, 5):
        broken.update(batch, noise)
        whole.update(batch, noise)
    assert broken.critic.parameters["critics.0.1.weight"][0].isnan().all()
    for name, parameter in whole.actor.parameters.items():
        assert torch.equal(broken.actor.parameters[name][1], parameter[1])


def test_methods_that_judge_units_see_only_the_network_that_is_trained():
    """ReDo recycles the silent units of a critic although its target and the policy pass through copies of it."""
    agent = SAC(5, 3, SMALL, [0, 1], critic_method=lambda critic: ReDo(critic, every=3))
    silent = agent.critic.parameters["critics.0.0.block0.0.bias"], agent.critic.parameters["critics.0.0.block0.1.bias"]
    for parameter in silent:
        parameter[1, :4] = -100.0
    for batch, noise in batches(2, 4):  # what is due in the third update comes before the fourth
        agent.update(batch, noise)
    assert (silent[0][1, :4].abs() < 0.1).all()
    assert (agent.target["critics.0.0.block0.0.bias"][1, :4] < -1).all()


def test_state_goes_on_to_the_same_bits():
    agent, other = (SAC(5, 3, SMALL, [0, 1], critic_method=spectral) for _ in range(2))
    for batch, noise in batches(2, 3):
        agent.update(batch, noise)
    other.load_state_dict(agent.state_dict())
    for batch, noise in batches(2, 3):
        agent.update(batch, noise)
        other.update(batch, noise)
    for mine, theirs in zip(
        torch.utils._pytree.tree_leaves(agent.state_dict()),
        torch.utils._pytree.tree_leaves(other.state_dict()),
        strict=True,
    ):
        assert torch.equal(mine, theirs)


def test_acting():
    agent = SAC(5, 3, SMALL, [0, 1])
    observation = torch.randn(2, 7, 5)
    assert agent.act(observation).shape == (2, 7, 3)
    noise = torch.randn(2, 7, 3)
    mean, log_deviation = agent.actor.population.member(1)(observation[1])
    torch.testing.assert_close(agent.act(observation)[1], mean.tanh())
    torch.testing.assert_close(agent.act(observation, noise)[1], (mean + log_deviation.exp() * noise[1]).tanh())
    torch.testing.assert_close(agent.act(observation[:, 0]), agent.act(observation)[:, 0], msg="a batch or none")


def test_actors_and_critics_begin_from_streams_of_their_own():
    agent = SAC(5, 3, Constants(hidden=(8,)), [3, 4])
    for learner, stream in ((agent.actor, Stream.ACTOR), (agent.critic, Stream.CRITIC)):
        assert learner.population.seeds == tuple(number(stream, seed) for seed in (3, 4))
