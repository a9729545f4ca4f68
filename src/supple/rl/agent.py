"""The agents of a run, with its method."""

import json

from supple.rl.methods import find, mitigator_for
from supple.rl.run import Run
from supple.rl.sac import SAC
from supple.training.compiled_code import can_compile

COMPILE_FROM = 20_000
"""Compiling pays from this many member-updates in a run: it costs 20 to 60 s and saves about 3 ms per update."""


def agent_of(run: Run, observation_size: int, action_size: int, *, compiled: bool, device: str) -> SAC:
    """An agent for each seed of a run, with the run's method on all actors and all critics."""
    method, options = find(run.method), json.loads(run.options)
    settings = options, run.exempt_heads
    return SAC(
        observation_size,
        action_size,
        run.constants,
        run.seeds,
        actor_method=lambda actor: mitigator_for(method, actor, run.actor_strength, *settings),
        critic_method=lambda critic: mitigator_for(method, critic, run.strength, *settings),
        compiled=compiled,
        device=device,
    )


def should_compile(run: Run, device: str) -> bool:
    """Whether to compile the update: if the run is long, and its method and this machine allow it."""
    is_long = run.updates * len(run.seeds) >= COMPILE_FROM
    return is_long and not getattr(find(run.method).mitigator, "observes", False) and can_compile(device)
