"""Soft actor-critic for one agent, written down step by step with modules, distributions and optimizers of torch."""

import copy

import torch
from torch.distributions import Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform


class NaiveSAC:
    """Takes over the networks of one member and trains them on its own."""

    def __init__(self, actor, critic, constants, action_size, mitigate=None):
        self.actor, self.critic = copy.deepcopy(actor), copy.deepcopy(critic)
        self.target = copy.deepcopy(self.critic)
        self.constants, self.action_size = constants, action_size
        self.log_alpha = torch.tensor(constants.temperature).log().requires_grad_()
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=constants.actor_step_size)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=constants.critic_step_size)
        self.alpha_optimizer = torch.optim.Adam([self.log_alpha], lr=constants.temperature_step_size)
        if mitigate:
            mitigate(self.actor).attach(self.actor_optimizer)
            mitigate(self.critic).attach(self.critic_optimizer)

    def policy(self, observation, noise):
        mean, log_deviation = self.actor(observation)
        policy = TransformedDistribution(Normal(mean, log_deviation.exp()), TanhTransform(cache_size=1))
        action = policy.transforms[0](mean + log_deviation.exp() * noise)
        return action, policy.log_prob(action).sum(-1)

    def update(self, batch, noise):
        alpha = self.log_alpha.exp().detach()
        with torch.no_grad():
            action, log_probability = self.policy(batch.next_observation, noise[0])
            least = self.target(batch.next_observation, action).min(dim=-1).values
            goal = batch.reward + self.constants.discount * (1 - batch.terminal) * (least - alpha * log_probability)
        values = self.critic(batch.observation, batch.action)
        critic_loss = sum(((values[:, k] - goal) ** 2).mean() for k in range(values.shape[1]))
        self.critic_optimizer.zero_grad()
        critic_loss.backward()
        self.critic_optimizer.step()

        with torch.no_grad():
            for slow, fast in zip(self.target.parameters(), self.critic.parameters(), strict=True):
                slow.copy_((1 - self.constants.averaging) * slow + self.constants.averaging * fast)

        action, log_probability = self.policy(batch.observation, noise[1])
        actor_loss = (alpha * log_probability - self.critic(batch.observation, action).min(dim=-1).values).mean()
        self.actor_optimizer.zero_grad()
        actor_loss.backward()
        self.actor_optimizer.step()

        entropy = -log_probability.detach().mean()
        factor = self.log_alpha.exp() if self.constants.temperature_loss == "temperature" else self.log_alpha
        alpha_loss = factor * (entropy - self.constants.entropy_per_action * self.action_size)
        self.alpha_optimizer.zero_grad()
        alpha_loss.backward()
        self.alpha_optimizer.step()
