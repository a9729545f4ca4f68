"""A soft actor-critic of Stable-Baselines3 whose actor's and critic's largest singular values are pulled to one.

The agent has an optimizer for each network; a method is attached to each. Printed are the return of the trained policy
and each network's largest singular values, with and without.

python examples/stable_baselines3_agent.py          # 3,000 steps of Pendulum-v1: a minute or two on one core
python examples/stable_baselines3_agent.py 300
"""

import sys

import torch
from stable_baselines3 import SAC
from stable_baselines3.common.evaluation import evaluate_policy

import supple


def train(steps: int, strength: float) -> tuple[float, dict[str, float]]:
    """The mean return over five episodes, and the largest singular value in actor and critic."""
    agent = SAC("MlpPolicy", "Pendulum-v1", seed=0, device="cpu", policy_kwargs={"net_arch": [64, 64]})
    regularizers = {
        name: supple.SpectralRegularizer(network, strength=strength).attach(network.optimizer)
        for name, network in {"actor": agent.actor, "critic": agent.critic}.items()
    }
    agent.learn(steps)
    norms = {
        name: max(norm.max().item() for norm in regularizer.spectral_norms().values())
        for name, regularizer in regularizers.items()
    }
    return float(evaluate_policy(agent, agent.get_env(), n_eval_episodes=5)[0]), norms


def main(steps: int = 3000) -> dict[str, tuple[float, dict[str, float]]]:
    results = {"SAC": train(steps, strength=0.0), "SAC and spectral": train(steps, strength=1e-4)}
    for name, (mean_return, norms) in results.items():
        print(f"{name:18} return {mean_return:8.1f}  ", *(f"{part} {norm:.2f}" for part, norm in norms.items()))
    return results


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*map(int, sys.argv[1:]))
