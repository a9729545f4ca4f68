"""Compare supple's soft actor-critic with Stable-Baselines3's: updates per second, memory, cost and learning.

python benchmarks/control.py speed      # minutes; ratios are valid even on a busy machine
python benchmarks/control.py memory     # a minute
python benchmarks/control.py learn      # hours; what is finished is not trained again
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from measuring import ratios, settings, take_turns, use_threads, write

import supple
from supple.rl.charts import with_steps
from supple.rl.envs import make
from supple.rl.presets import PRESETS, Constants
from supple.rl.replay import Replay
from supple.rl.run import Run
from supple.rl.sac import SAC, Batch
from supple.rl.train import train
from supple.runs.store import load
from supple.runs.streams import Stream, number
from supple.training.precision import matmul_precision

QUADRUPED = 78, 12
ROOT = Path(__file__).parent.parent / "results" / "control"


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Updates per second on one thread at quadruped's sizes, batch 256; the variants take turns."""

    rounds: int = 60
    """How often each variant is timed; ratios are ratios of the minimum times."""
    updates: int = 3
    """Updates in one timing."""
    out: Path = ROOT / "speed.json"

    def __call__(self) -> None:
        use_threads(1)
        spectral, plain = "one critic, LayerNorm, spectral", "one critic, LayerNorm"
        variants = {
            "sb3": sb3_updates(self.updates),
            spectral: supple_updates(self.updates, spectral=True),
            plain: supple_updates(self.updates),
            f"{spectral}, not compiled": supple_updates(self.updates, spectral=True, compiled=False),
            f"{spectral}, medium precision": supple_updates(self.updates, spectral=True, precision="medium"),
            "sb3's networks": supple_updates(self.updates, preset="sb3"),
        }
        seconds = {
            name: [value / self.updates for value in values]
            for name, values in take_turns(variants, self.rounds).items()
        }
        least = {name: min(values) for name, values in seconds.items()}
        measured = {
            "updates_per_second": {name: 1 / value for name, value in least.items()},
            "times_sb3": {name: least["sb3"] / value for name, value in least.items()},
            "times_sb3_median_of_rounds": {
                name: statistics.median(ratios(seconds["sb3"], values)) for name, values in seconds.items()
            },
            "cost_of_spectral": least[spectral] / least[plain],
            "gain_of_medium_precision": least[spectral] / least[f"{spectral}, medium precision"],
            "cost_of_spectral_median_of_rounds": statistics.median(ratios(seconds[spectral], seconds[plain])),
        }
        write(self.out, self, **measured, seconds=seconds)
        print(json.dumps(measured, indent=2))


def supple_updates(
    count: int, *, preset: str = "paper", spectral: bool = False, compiled: bool = True, precision: str = "highest"
) -> Callable[[], None]:
    observation, action = QUADRUPED
    regularized = partial(supple.SpectralRegularizer, strength=1e-4)
    methods = {"actor_method": regularized, "critic_method": regularized} if spectral else {}
    agent = SAC(*QUADRUPED, Constants(**PRESETS[preset]), [0], compiled=compiled, **methods)
    batch = Batch(
        torch.randn(1, 256, observation),
        torch.rand(1, 256, action) * 2 - 1,
        torch.rand(1, 256),
        torch.zeros(1, 256),
        torch.randn(1, 256, observation),
    )
    noise = torch.randn(2, 1, 256, action)

    def update() -> None:
        with matmul_precision(precision):
            for _ in range(count):
                agent.update(batch, noise)

    return update


def sb3_updates(count: int) -> Callable[[], None]:
    import gymnasium
    from stable_baselines3 import SAC as Theirs  # noqa: N811
    from stable_baselines3.common.logger import configure

    class Silent(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-1, 1, QUADRUPED[:1])
        action_space = gymnasium.spaces.Box(-1, 1, QUADRUPED[1:])

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            return np.zeros(QUADRUPED[0], np.float32), {}

    agent = Theirs("MlpPolicy", Silent(), policy_kwargs={"net_arch": [256, 256]}, buffer_size=2000, device="cpu")
    agent.set_logger(configure(None, []))
    rng = np.random.default_rng(0)
    for _ in range(1000):
        observation, following = rng.standard_normal((2, 1, QUADRUPED[0]), np.float32)
        agent.replay_buffer.add(
            observation, following, rng.uniform(-1, 1, (1, QUADRUPED[1])), np.ones(1), np.zeros(1), [{}]
        )
    return lambda: agent.train(gradient_steps=count, batch_size=256)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Memory of a full buffer with a million of quadruped's transitions, divided by the bytes of its numbers."""

    transitions: int = 1_000_000
    out: Path = ROOT / "memory.json"

    def __call__(self) -> None:
        observation, action = QUADRUPED
        before = resident_bytes()
        replay = Replay(1, self.transitions, observation, action, spare=5_000)
        row = np.ones((1, observation), np.float32), np.ones((1, action), np.float32), *np.ones((2, 1), np.float32)
        for _ in range(self.transitions + 5_000):
            replay.add(*row, row[0])
        arrays = self.transitions * (2 * observation + action + 2) * 4
        resident = resident_bytes() - before
        measured = {"bytes_of_the_arrays": arrays, "resident": resident, "ratio": resident / arrays}
        write(self.out, self, **measured)
        print(json.dumps(measured, indent=2))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@dataclass(frozen=True, kw_only=True)
class Learn:
    """Train all agents on one task with equal steps, replay ratio, batch size, first random steps and evaluation."""

    task: str = "cartpole-swingup"
    agents: tuple[str, ...] = ("supple", "sb3", "random")
    """Agents, among supple, sb3 and random."""
    seeds: int = 3
    steps: int = 30_000
    replay_ratio: int = 4
    random_steps: int = 1_000
    evaluate_every: int = 5_000
    preset: str = "paper"
    method: str = "spectral"
    strength: float | None = None
    """The method's default when left out."""
    exempt_heads: bool | None = None
    """Whether the method leaves out the heads; the method's default when left out."""
    matmul_precision: str = "highest"
    out: Path = ROOT / "learn"
    """Folder for one JSON file per agent and seed; finished ones are not repeated."""

    def __call__(self) -> None:
        torch.set_num_threads(1)
        for seed in range(self.seeds):
            for agent in self.agents:
                path = self.out / f"{self.task}-{agent}-{seed}.json"
                if path.exists():
                    self.check_same(path)
                else:
                    start = time.process_time()
                    returns = {"supple": self.supple, "sb3": self.sb3, "random": self.random}[agent](seed)
                    run = self.run(seed).config() if agent == "supple" else None
                    write(path, self, run=run, returns=returns, processor_seconds=time.process_time() - start)
                print(agent, seed, json.loads(path.read_text())["returns"], flush=True)

    def check_same(self, path: Path) -> None:
        """Check that a finished agent was trained as is asked for now."""
        found = json.loads(path.read_text())
        then, now = settings(Learn()) | found["config"], settings(self)
        if run := found.get("run"):  # with the defaults of its time
            then, now = then | run, now | json.loads(json.dumps(self.run(run["seeds"][0]).config()))
        other = [name for name in now if name not in ("agents", "seeds") and now[name] != then.get(name)]
        if other:
            told = ", ".join(f"{name} {now[name]} (there {then.get(name)})" for name in other)
            sys.exit(f"expected a folder for {told}, got {path}: take another --out")

    def run(self, seed: int) -> Run:
        return Run.of(
            self.task,
            self.method,
            [seed],
            strength=self.strength,
            exempt_heads=self.exempt_heads,
            matmul_precision=self.matmul_precision,
            preset=self.preset,
            steps=self.steps,
            evaluate_every=self.evaluate_every,
            replay_ratio=self.replay_ratio,
            random_steps=self.random_steps,
            capacity=self.steps,
        )

    def supple(self, seed: int) -> dict[str, float]:
        with tempfile.TemporaryDirectory() as root:
            train(self.run(seed), root=root)
            rows = with_steps(load(root)).filter(metric="return")
        return {str(step): value for step, value in rows.select("step", "value").iter_rows()}

    def sb3(self, seed: int) -> dict[str, float]:
        from stable_baselines3 import SAC as Theirs  # noqa: N811

        world = as_gymnasium(self.task)
        agent = Theirs(
            "MlpPolicy",
            world,
            policy_kwargs={"net_arch": [256, 256]},
            buffer_size=self.steps,
            learning_starts=self.random_steps,
            gradient_steps=self.replay_ratio,
            seed=seed,
            device="cpu",
        )
        returns = {}
        for step in range(self.evaluate_every, self.steps + 1, self.evaluate_every):
            agent.learn(self.evaluate_every, reset_num_timesteps=False)
            returns[str(step)] = self.score(seed, step, lambda seen: agent.predict(seen, deterministic=True)[0])
        return returns

    def random(self, seed: int) -> dict[str, float]:
        rng = np.random.default_rng(seed)
        size = make(self.task).action_size
        return {"0": self.score(seed, 0, lambda seen: rng.uniform(-1, 1, size).astype(np.float32))}

    def score(self, seed: int, step: int, act: Callable[[np.ndarray], np.ndarray]) -> float:
        """The mean return of ten episodes, started like supple's evaluations."""
        world, totals = make(self.task), []
        for episode in range(10):
            seen, total, last = world.begin(number(Stream.EVALUATION, seed, step, episode)), 0.0, False
            while not last:
                seen, reward, _, last = world.step(act(seen))
                total += reward
            totals.append(total)
        return statistics.mean(totals)


def as_gymnasium(task: str) -> Any:
    """One of our environments as a Gymnasium environment."""
    import gymnasium

    world = make(task)

    class Adapter(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (world.observation_size,))
        action_space = gymnasium.spaces.Box(-1, 1, (world.action_size,))

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            super().reset(seed=seed)
            return world.begin(int(self.np_random.integers(2**31))), {}

        def step(self, action: np.ndarray) -> Any:
            step = world.step(action)
            return step.observation, step.reward, step.terminal, step.last and not step.terminal, {}

    return Adapter()


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"speed": Speed, "memory": Memory, "learn": Learn})()
