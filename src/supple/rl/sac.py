"""Soft actor-critic for many seeds at once: act, update critic, update actor, update temperature.

The first dimension of every tensor is the members. The losses are written for one member and vectorized over all.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap
from torch.nn.functional import softplus

from supple.mitigators.base import Mitigator
from supple.mitigators.states import Tensors
from supple.network.population import Population
from supple.rl.networks import Actor, Critic
from supple.rl.presets import Constants
from supple.runs.streams import Stream, number
from supple.training.learner import Learner, copy_into
from supple.training.optimizers import adam, adam_moments

MitigatorFactory = Callable[[Population], Mitigator]
Network = Callable[..., Any]
_KEEP_WHAT_IS_REUSED: dict[str, str | int | bool | Callable[..., Any]] = {
    "realize_reads_threshold": 1,
    "realize_opcount_threshold": 4,
}
"""Compiler options. Without them, compiled code recomputes the new weights of a layer with one output once for each row
of the batch."""
_CALL_FROM_C = {"cpp_wrapper": True}
"""Compiler options for a CPU: an update calls about fifty kernels, which takes a few percent of its time in Python."""


class Batch(NamedTuple):
    """Transitions ``(..., batch, size)``, or ``(..., batch)``; terminal is 1 at terminal states, 0 at time limits."""

    observation: Tensor
    action: Tensor
    reward: Tensor
    terminal: Tensor
    next_observation: Tensor


class SAC:
    """Independent agents that maximize reward and entropy, one per seed, stepped together.

    Args:
        observation_size: numbers in an observation.
        action_size: numbers in an action, each in [−1, 1].
        constants: the hyperparameters.
        seeds: one per member.
        actor_method: makes the actors' mitigator.
        critic_method: makes the critics' mitigator.
        compiled: whether :meth:`update` is compiled: this takes 20 to 60 s, so it pays only in long runs.
        device: of all tensors.

    Source: Haarnoja et al., *Soft Actor-Critic Algorithms and Applications*, 2018. The critic's target includes the
    entropy of the next action. One minibatch is used to update critic, target, actor (with the new critic) and
    temperature, in this order.
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        constants: Constants,
        seeds: Sequence[int],
        *,
        actor_method: MitigatorFactory = lambda population: Mitigator(population, 0.0),
        critic_method: MitigatorFactory = lambda population: Mitigator(population, 0.0),
        compiled: bool = False,
        device: str = "cpu",
    ) -> None:
        self.constants = constants
        self.target_entropy = constants.entropy_per_action * action_size
        sizes = observation_size, action_size, constants
        actors = Population(lambda: Actor(*sizes), [number(Stream.ACTOR, seed) for seed in seeds]).to(device)
        critics = Population(lambda: Critic(*sizes), [number(Stream.CRITIC, seed) for seed in seeds]).to(device)
        steps = constants.actor_step_size, constants.critic_step_size
        self.actor = Learner(actors, actor_method(actors), steps[0], compiled=compiled)
        self.critic = Learner(critics, critic_method(critics), steps[1], compiled=compiled)
        self.target: Tensors = {name: parameter.clone() for name, parameter in self.critic.parameters.items()}
        start = torch.full((len(seeds),), math.log(constants.temperature), device=device)
        self.temperature: Tensors = {"logarithm": start}
        self.temperature_moments = adam_moments(self.temperature)
        options = _KEEP_WHAT_IS_REUSED | (_CALL_FROM_C if torch.device(device).type == "cpu" else {})
        self.update = torch.compile(self._update, options=options) if compiled else self._update

    @torch.no_grad()
    def act(self, observation: Tensor, noise: Tensor | None = None) -> Tensor:
        """Actions for observations ``(members, ..., size)``: sampled with standard normal ``noise``, or tanh(mean)."""
        policy = vmap(self.actor)(self.actor.parameters, observation)
        return torch.tanh(policy[0]) if noise is None else squashed(policy, noise)[0]

    def _update(self, batch: Batch, noise: Tensor) -> None:
        """Update all parts once, on a batch ``(members, batch, ...)`` with noise ``(2, members, batch, action)``."""
        self._update_critic(batch, noise[0])
        self._update_target()
        entropy = self._update_actor(batch.observation, noise[1])
        self._update_temperature(entropy)

    def critic_loss(
        self, critic: Network, target: Tensors, actor: Tensors, alpha: Tensor, batch: Batch, noise: Tensor
    ) -> tuple[Tensor, Any]:
        """Squared error of Q(s, a) to r + γ (1 − terminal) (min Q̄(s', a') − α log π(a'|s')), with a' ~ π(s')."""
        action, log_probability = squashed(self.actor(actor, batch.next_observation), noise)
        value = self.critic(target, batch.next_observation, action).amin(-1) - alpha * log_probability
        goal = batch.reward + self.constants.discount * (1 - batch.terminal) * value
        error = critic(batch.observation, batch.action) - goal.unsqueeze(-1)
        return error.square().mean(0).sum(), ()

    def _update_critic(self, batch: Batch, noise: Tensor) -> None:
        self.critic.learn(self.critic_loss, self.target, self.actor.parameters, self.alpha, batch, noise)

    def _update_target(self) -> None:
        """Q̄ ← (1 − τ) Q̄ + τ Q."""
        for name, parameter in self.target.items():
            parameter.lerp_(self.critic.parameters[name], self.constants.averaging)

    def actor_loss(
        self, actor: Network, critic: Tensors, alpha: Tensor, observation: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The mean of α log π(a|s) − min Q(s, a), with a ~ π(s); and the policy's entropy."""
        action, log_probability = squashed(actor(observation), noise)
        value = self.critic(critic, observation, action).amin(-1)
        return (alpha * log_probability - value).mean(), -log_probability.detach().mean()

    def _update_actor(self, observation: Tensor, noise: Tensor) -> Tensor:
        entropy: Tensor = self.actor.learn(self.actor_loss, self.critic.parameters, self.alpha, observation, noise)
        return entropy

    def _update_temperature(self, entropy: Tensor) -> None:
        """A step on log α, whose gradient is (entropy − target), times α or not: α grows where entropy is too low."""
        slope = entropy - self.target_entropy
        if self.constants.temperature_loss == "temperature":
            slope = slope * self.alpha
        adam(self.temperature, {"logarithm": slope}, self.temperature_moments, self.constants.temperature_step_size)

    @property
    def alpha(self) -> Tensor:
        """The temperature of each member."""
        return self.temperature["logarithm"].exp()

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on."""
        return {
            "actor": self.actor.state_dict(),
            "critic": self.critic.state_dict(),
            "target": self.target,
            "temperature": self.temperature,
            "temperature_moments": self.temperature_moments,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Copy the result of :meth:`state_dict` into the existing tensors."""
        self.actor.load_state_dict(state["actor"])
        self.critic.load_state_dict(state["critic"])
        copy_into(self.target, state["target"])
        copy_into(self.temperature, state["temperature"])
        for name, moments in self.temperature_moments.items():
            copy_into(moments, state["temperature_moments"][name])


def squashed(policy: tuple[Tensor, Tensor], noise: Tensor) -> tuple[Tensor, Tensor]:
    r"""The action tanh(u), u = mean + deviation · noise, and its log-probability, exact even where tanh saturates.

    .. math:: \log \pi = \sum_i -\tfrac12 \epsilon_i^2 - \log\sigma_i - \tfrac12\log 2\pi - \log(1 - \tanh^2 u_i),
              \qquad \log(1 - \tanh^2 u) = 2\,(\log 2 - u - \operatorname{softplus}(-2u))
    """
    mean, log_deviation = policy
    raw = mean + log_deviation.exp() * noise
    gaussian = -0.5 * noise.square() - log_deviation - 0.5 * math.log(2 * math.pi)
    slope = 2 * (math.log(2) - raw - softplus(-2 * raw))
    return torch.tanh(raw), (gaussian - slope).sum(-1)
