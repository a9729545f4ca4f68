"""The constants of soft actor-critic, and the sets of them that published programs use."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Constants:
    """What soft actor-critic leaves open. The defaults are those of the preset ``paper``."""

    replay_ratio: int = 16
    """Updates for each step of the environment."""
    random_steps: int = 10_000
    """Steps with uniformly random actions before the first update."""
    capacity: int = 1_000_000
    """Transitions that the replay buffer holds."""
    batch_size: int = 256
    hidden: tuple[int, ...] = (256, 256)
    """Units of each hidden layer, of actor and critics alike."""
    critics: int = 1
    """The least of their values counts."""
    layer_norm: bool = True
    """Between each hidden layer's linear map and its non-linearity, ε = 1e-6; the heads are bare."""
    initialization: Literal["orthogonal", "torch"] = "orthogonal"
    """Orthogonal: gain √2, 1 for the log-deviation's head, biases 0. Torch's: uniform in ± 1/√fan-in."""
    log_deviation: tuple[float, float] = (-10.0, 2.0)
    """The range of the policy's log standard deviation."""
    bounded_by: Literal["tanh", "clamp"] = "tanh"
    """How the log standard deviation is brought into its range."""
    actor_step_size: float = 3e-4
    critic_step_size: float = 3e-4
    temperature_step_size: float = 3e-4
    discount: float = 0.99
    averaging: float = 0.005
    """τ, the share of the critic that its target takes over at each update."""
    temperature: float = 1.0
    """α at the start."""
    entropy_per_action: float = -0.5
    """The target entropy over the number of action dimensions."""
    temperature_loss: Literal["temperature", "logarithm"] = "temperature"
    """What multiplies (entropy − target) in the temperature's loss: α or log α."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A published set of constants, as its differences from the paper's."""

    source: str
    changes: Mapping[str, Any]


PRESETS: dict[str, Preset] = {
    "paper": Preset(
        source="Lewandowski et al., Learning Continually by Spectral Regularization, ICLR 2025, §5.4 and App. B; what "
        "it does not say is D'Oro et al.'s",
        changes={},
    ),
    "doro": Preset(
        source="D'Oro et al., Sample-Efficient Reinforcement Learning by Breaking the Replay Ratio Barrier, ICLR 2023",
        changes={"critics": 2, "layer_norm": False},
    ),
    "cleanrl": Preset(
        source="CleanRL, sac_continuous_action.py",
        changes={
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
    ),
    "sb3": Preset(
        source="Stable-Baselines3, the defaults of its SAC",
        changes={
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
    ),
}
