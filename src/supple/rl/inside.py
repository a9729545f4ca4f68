"""Diagnostics of agents: overestimation, entropy, norms, singular values, effective step sizes, dormant units."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from supple.diagnostics import DIAGNOSTICS, Inspection, spectra
from supple.diagnostics.gradients import gradient_norm
from supple.kernels.power_iteration import TINY
from supple.mitigators.states import Tensors
from supple.rl.envs import Environment
from supple.rl.networks import layers_of
from supple.rl.sac import SAC, Batch, squashed

FIRST_STATES = 350
"""Overestimation is averaged over this many first states of an episode: a time limit hardly affects their returns."""


def networks(agent: SAC, batch: Batch, noise: Tensor) -> dict[str, Tensor]:
    """By metric of :data:`supple.runs.metrics.METRICS`, one value per member; a layer's is ``…_spectral_norm/<layer>``.

    Gradients and activations are computed on a batch as for :meth:`SAC.update`.
    """
    metrics: dict[str, Tensor] = {"temperature": agent.alpha}
    alpha, actor, critic = agent.alpha, agent.actor.parameters, agent.critic.parameters
    with agent.critic.unobserved():
        critic_gradient, _ = agent.critic.gradients(agent.critic_loss, agent.target, actor, alpha, batch, noise[0])
    with agent.actor.unobserved():
        actor_gradient, entropy = agent.actor.gradients(agent.actor_loss, critic, alpha, batch.observation, noise[1])
    metrics["entropy"] = entropy
    for name, learner, gradient, inputs in (
        ("actor", agent.actor, actor_gradient, (batch.observation,)),
        ("critic", agent.critic, critic_gradient, (batch.observation, batch.action)),
    ):
        seen = Inspection(learner.population, inputs)
        flat = {key: tensor.flatten(1) for key, tensor in gradient.items()}
        norms = {key: values[..., 0].amax(-1) for key, values in seen.singular_values.items()}
        heads = {parameter.rpartition(".")[0] for parameter in layers_of(learner.population.stacked)[-1]}
        features = [values for layer, values in seen.activations.items() if layer in heads]
        metrics |= {
            f"{name}_weight_norm": DIAGNOSTICS["weight_norm"](seen)[""],
            f"{name}_gradient_norm": gradient_norm(flat)[""],
            f"{name}_spectral_norm": torch.stack(list(norms.values())).amax(0),
            f"{name}_dormant": DIAGNOSTICS["dormant_units"](seen)[""],
            f"{name}_effective_rank": torch.stack(
                [spectra.effective_rank(spectra.singular_values(values)) for values in features]
            ).mean(0),
        }
        metrics |= {f"{name}_spectral_norm/{key}": value for key, value in norms.items()}
    return metrics


def weights(agent: SAC) -> dict[str, Tensors]:
    """A copy of the parameters of actor and critic, by network."""
    networks = {"actor": agent.actor, "critic": agent.critic}
    return {name: {key: p.clone() for key, p in learner.parameters.items()} for name, learner in networks.items()}


def effective_step_sizes(agent: SAC, before: dict[str, Tensors]) -> dict[str, Tensor]:
    r"""How far the parameters have moved, relative to their norm: of each network, and of each of its matrices.

    .. math:: \lVert \theta - \theta_{\text{before}} \rVert / \lVert \theta_{\text{before}} \rVert

    If a normalization follows, the loss does not depend on a weight's norm; this ratio, not the step size, then tells
    how fast the weight turns (van Laarhoven, *L2 Regularization versus Batch and Weight Normalization*, 2017).

    Args:
        agent: after one or more updates.
        before: what :func:`weights` returned before them.
    """
    metrics = {}
    for network, parameters in weights(agent).items():
        old = {name: tensor.flatten(1) for name, tensor in before[network].items()}
        change = {name: tensor.flatten(1) - old[name] for name, tensor in parameters.items()}
        parts = {"": [*old]} | {
            f"/{name.removesuffix('.weight')}": [name] for name, p in parameters.items() if p.ndim > 2
        }
        for layer, names in parts.items():
            norms = [torch.cat([tensors[name] for name in names], 1).norm(dim=1) for tensors in (change, old)]
            metrics[f"{network}_effective_step_size{layer}"] = norms[0] / norms[1].clamp_min(TINY)
    return metrics


@torch.no_grad()
def overestimation(
    agent: SAC, member: int, world: Environment, seed: int, generator: np.random.Generator, device: str = "cpu"
) -> float:
    r"""How far a member's Q lies above the discounted return of an episode played with its stochastic policy.

    .. math:: \operatorname{mean}_{t < 350} \frac{Q(s_t, a_t) - G_t}{\max(|G_t|, 10)},\qquad
              G_t = r_t + \gamma\,(G_{t+1} - \alpha \log\pi(a_{t+1} | s_{t+1}))

    After a terminal state G is zero. If the episode only ran out of time in :math:`s_T`, G continues with the critic's
    own value: :math:`G_T = Q(s_T, a_T)` with :math:`a_T \sim \pi`. Otherwise a perfect critic would seem wrong in short
    episodes. An error of this value counts :math:`\gamma^{T-t}` times: hardly in the first 350 of 1,000 steps.

    Source: the quantity is the paper's (Figure 5), which does not define it; the normalization is Nauman et al.'s,
    *Overestimation, Overfitting, and Plasticity in Actor-Critic*, 2024.
    """
    actor, critic = ({k: v[member] for k, v in learner.parameters.items()} for learner in (agent.actor, agent.critic))

    def look(observation: np.ndarray) -> tuple[Tensor, float, float]:
        """A random action, its value and its entropy bonus."""
        seen = torch.from_numpy(observation).to(device)
        noise = torch.from_numpy(generator.standard_normal(world.action_size, np.float32)).to(device)
        action, log_probability = squashed(agent.actor(actor, seen), noise)
        value = agent.critic(critic, seen, action).amin()
        return action, float(value), -float(agent.alpha[member] * log_probability)

    values, gains, terminal, last = [], [], False, False
    observation = world.begin(seed)
    while not last:
        action, value, bonus = look(observation)
        if not action.isfinite().all():
            return float("nan")
        observation, reward, terminal, last = world.step(action.cpu().numpy())
        values.append(value)
        gains.append((reward, bonus))
    rest = 0.0 if terminal else sum(look(observation)[1:])
    return relative_error(values, gains, agent.constants.discount, rest)


def relative_error(
    values: Sequence[float], gains: Sequence[tuple[float, float]], discount: float, rest: float = 0.0
) -> float:
    """The mean over the first states of (Q − G) / max(|G|, 10), from each step's value, reward and entropy bonus.

    ``rest`` is the return after the last step, with the entropy bonus.
    """
    returns, following = [], rest
    for reward, bonus in reversed(gains):
        returns.append(reward + discount * following)
        following = returns[-1] + bonus
    pairs = list(zip(values, reversed(returns), strict=True))[:FIRST_STATES]
    return float(np.mean([(value - returned) / max(abs(returned), 10) for value, returned in pairs]))
