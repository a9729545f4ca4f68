"""Stable-Baselines3: a method on each network's own optimizer."""

import pytest
import torch

from oracles.plain_loop import spectral
from support.resting import resting

gymnasium = pytest.importorskip("gymnasium")
stable_baselines3 = pytest.importorskip("stable_baselines3")


def sac():
    return stable_baselines3.SAC(
        "MlpPolicy",
        "Pendulum-v1",
        policy_kwargs={"net_arch": [8]},
        learning_starts=4,
        batch_size=4,
        seed=1,
        device="cpu",
    )


def ppo():
    return stable_baselines3.PPO(
        "MlpPolicy",
        "Pendulum-v1",
        policy_kwargs={"net_arch": [8]},
        n_steps=8,
        batch_size=4,
        n_epochs=2,
        seed=1,
        device="cpu",
    )


def networks_of(agent):
    if isinstance(agent, stable_baselines3.SAC):
        return {agent.actor: agent.actor.optimizer, agent.critic: agent.critic.optimizer}
    return {agent.policy: agent.policy.optimizer}


def train(make, how):
    """What is attached or written into the agent's own optimizer, and the weights afterwards."""
    agent = make()
    for network, optimizer in networks_of(agent).items():
        method = spectral(network)
        if how == "attached":
            method.attach(optimizer)
        elif how == "by hand":
            step = optimizer.step

            def stepped(closure=None, step=step, method=method):
                method.before_step()
                step()

            optimizer.step = stepped
    agent.learn(16)
    return torch.cat([parameter.detach().flatten() for parameter in agent.policy.parameters()])


@pytest.mark.parametrize("make", [sac, ppo])
def test_each_step_is_the_one_written_by_hand(make):
    attached, by_hand, without = (train(make, how) for how in ("attached", "by hand", "without"))
    assert torch.equal(attached, by_hand)
    assert not torch.equal(attached, without)


def test_a_saved_agent_is_attached_anew(tmp_path):
    agent = sac()
    method = spectral(agent.critic).attach(agent.critic.optimizer)
    agent.learn(8)
    agent.save(tmp_path / "agent.zip")
    torch.save(method.state_dict(), tmp_path / "method.pt")
    loaded = stable_baselines3.SAC.load(tmp_path / "agent.zip", device="cpu")
    again = spectral(loaded.critic).attach(loaded.critic.optimizer)
    again.load_state_dict(torch.load(tmp_path / "method.pt"))
    for one in (agent, loaded):
        before = [parameter.detach().clone() for parameter in one.critic.parameters()]
        one.critic.optimizer.zero_grad()
        resting(one.critic)
        one.critic.optimizer.step()
        assert not all(map(torch.equal, before, one.critic.parameters())), "it acts"
    for a, b in zip(agent.critic.parameters(), loaded.critic.parameters(), strict=True):
        assert torch.equal(a, b)
