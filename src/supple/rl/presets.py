"""The constants of soft actor-critic, and the values that published programs use."""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from supple.errors import check_range, known


@dataclass(frozen=True, kw_only=True)
class Constants:
    """The hyperparameters of soft actor-critic. The defaults are those of the preset ``paper``."""

    replay_ratio: int = 16
    """Updates for each step of the environment."""
    random_steps: int = 10_000
    """Steps with uniformly random actions before the first update."""
    capacity: int = 1_000_000
    """Transitions that the replay buffer holds."""
    batch_size: int = 256
    hidden: tuple[int, ...] = (256, 256)
    """Units of each hidden layer, in actor and critics."""
    critics: int = 1
    """Number of critics; the minimum of their values is used."""
    layer_norm: bool = True
    """LayerNorm between each hidden layer's linear map and its non-linearity, ε = 1e-6; none at the heads."""
    initialization: Literal["orthogonal", "torch"] = "orthogonal"
    """Orthogonal: gain √2, 1 for the log-deviation's head, biases 0. Torch's: uniform in ± 1/√fan-in."""
    log_deviation: tuple[float, float] = (-10.0, 2.0)
    """The range of the policy's log standard deviation."""
    bounded_by: Literal["tanh", "clamp"] = "tanh"
    """How the log standard deviation is limited to its range."""
    actor_step_size: float = 3e-4
    critic_step_size: float = 3e-4
    temperature_step_size: float = 3e-4
    discount: float = 0.99
    averaging: float = 0.005
    """τ, the critic's share in its target's moving average: Q̄ ← (1 − τ) Q̄ + τ Q."""
    temperature: float = 1.0
    """α at the start."""
    entropy_per_action: float = -0.5
    """The target entropy divided by the number of action dimensions."""
    temperature_loss: Literal["temperature", "logarithm"] = "temperature"
    """The factor of (entropy − target) in the temperature's loss: α or log α."""

    def __post_init__(self) -> None:
        check_range("a replay ratio", self.replay_ratio, 1, 1_000)
        check_range("random steps", self.random_steps, 0)
        check_range("transitions in a batch", self.batch_size, 1)
        check_range("a buffer capacity (at least a batch)", self.capacity, self.batch_size, 10**9)
        check_range("hidden layers", len(self.hidden), 1)
        check_range("units in each hidden layer", min(self.hidden), 1)
        check_range("critics", self.critics, 1)
        check_range("a discount", self.discount, 0, 1)
        check_range("an averaging rate", self.averaging, 0, 1)
        for name in ("actor_step_size", "critic_step_size", "temperature_step_size"):
            check_range(name, getattr(self, name), 0)  # a step size of 0 freezes the parameters
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"expected a positive temperature, got {self.temperature}: choose another number")
        for name, kind in get_type_hints(Constants).items():
            if get_origin(kind) is Literal:
                known(getattr(self, name), get_args(kind), name)


PRESETS: dict[str, dict[str, Any]] = {
    # Lewandowski et al., 2025, §5.4 and App. B; where it is silent, D'Oro et al.'s.
    "paper": {},
    # D'Oro et al., Sample-Efficient Reinforcement Learning by Breaking the Replay Ratio Barrier, ICLR 2023.
    "doro": {"critics": 2, "layer_norm": False},
    # CleanRL, sac_continuous_action.py.
    "cleanrl": {
        "replay_ratio": 1,
        "random_steps": 5_000,
        "critics": 2,
        "layer_norm": False,
        "initialization": "torch",
        "log_deviation": (-5.0, 2.0),
        "critic_step_size": 1e-3,
        "temperature_step_size": 1e-3,
        "entropy_per_action": -1.0,
    },
    # Stable-Baselines3, the defaults of its SAC.
    "sb3": {
        "replay_ratio": 1,
        "random_steps": 100,
        "critics": 2,
        "layer_norm": False,
        "initialization": "torch",
        "log_deviation": (-20.0, 2.0),
        "bounded_by": "clamp",
        "entropy_per_action": -1.0,
        "temperature_loss": "logarithm",
    },
}
"""Published sets of constants, each as its differences from the paper's."""
