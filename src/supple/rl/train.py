"""Training agents on a task: act, learn, evaluate, and save checkpoints."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from supple.mitigators.states import Tensors
from supple.rl import inside
from supple.rl.agent import agent_of, should_compile
from supple.rl.dry_run import dry_run
from supple.rl.envs import Environment, Episodes, Step, random_returns
from supple.rl.replay import Replay
from supple.rl.run import PRIMED_ON, Run
from supple.rl.sac import Batch
from supple.rl.worlds import world_at
from supple.runs.resume import Report, work_on
from supple.runs.store import SCHEMA
from supple.runs.streams import Stream, generator, number
from supple.training.precision import matmul_precision

Row = tuple[int, int, str, float]


class Training:
    """Agents in their environments, with all state that the next step depends on.

    Args:
        run: what to train.
        buffer: the file of the replay buffer; in memory when left out.
        compiled: whether to compile the update; by default, long runs are compiled where possible.
        device: of the agents; environments and buffer stay on the host.
    """

    def __init__(
        self, run: Run, *, buffer: Path | None = None, compiled: bool | None = None, device: str = "cpu"
    ) -> None:
        self.run, self.device = run, device
        self.episodes = [Episodes(world_at(run, seed, 0), seed) for seed in run.seeds]
        environment = self.episodes[0].environment
        sizes = environment.observation_size, environment.action_size
        self.compiled = should_compile(run, device) if compiled is None else compiled
        if self.compiled:
            torch.compiler.reset()  # otherwise it silently stops compiling after eight agents of different kinds
        self.agent = agent_of(run, *sizes, compiled=self.compiled, device=device)
        spare = min(run.evaluate_every, run.steps)
        capacity = min(run.constants.capacity, run.steps)  # no run needs more
        self.replay = Replay(len(run.seeds), capacity, *sizes, spare=spare, path=buffer)
        self.step, self.updates = 0, 0
        self.resets = 0
        """How many periods of the reset schedule had passed at the last reset."""
        self.stopped: dict[int, int] = {}
        """Members whose actions are no longer finite, with the step at which that was detected."""
        self.returns: list[list[float]] = [[] for _ in run.seeds]
        """For each member, the returns of the episodes finished since the last evaluation."""
        self._before: dict[str, Tensors] | None = None
        """Actor and critic before the last update, if their inside is measured after it."""
        self._test_environments: list[list[Environment]] = []
        self._pool = ThreadPoolExecutor(len(run.seeds)) if len(run.seeds) > 1 else None

    def advance(self, report: Report = lambda steps: None) -> None:
        """Take one step in every member's environment, then the updates for it."""
        self._act()
        self.step += 1
        if self.step == PRIMED_ON and self.run.prime:
            self._prime(report)
        constants = self.run.constants
        if len(self.replay) >= constants.random_steps:
            self._learn(self._generators(Stream.MINIBATCH, self.step), constants.replay_ratio)

    @property
    def _measures_inside(self) -> bool:
        """Whether the evaluation after this step measures the networks' inside."""
        return self.run.inside and (self.step % self.run.evaluate_every == 0 or self.step == self.run.steps)

    def learn(self, part: int, report: Report) -> pl.DataFrame:
        """Train to the next evaluation, measure, then reset the agents and change the world if that is due."""
        end = min((part + 1) * self.run.evaluate_every, self.run.steps)
        while self.step < end:
            self.advance(report)
            report(self.run.work_until(self.step))
        rows = self.measure()
        if self.step < self.run.steps:  # the agent at the end is the one that was evaluated
            self.reset_if_due()
        self.change_if_due()
        self.replay.flush()
        return rows

    @property
    def facts(self) -> dict[str, Any]:
        """What the numbers may depend on besides the configuration."""
        return {"device": self.device} | {name: version(name) for name in ("dm_control", "gymnasium", "mujoco")}

    def reset_if_due(self) -> None:
        """Reset the agents if another period of the reset schedule has passed.

        Called after an evaluation, as in the sources, so that an agent is not evaluated right after a reset.
        """
        resets = self.run.resets
        if resets and (periods := resets.periods(self.step, self.updates)) > self.resets:
            self.resets = periods
            seeds = [number(Stream.RESET, seed, self.resets) for seed in self.run.seeds]
            resets.reset(self.agent, [torch.Generator().manual_seed(seed) for seed in seeds])
            if "buffer" in resets.parts:
                self.replay.drop()

    def change_if_due(self) -> None:
        """Change the world if that is due: episodes are cut off as by a time limit; agents and buffer stay as they are.

        Called after an evaluation, which judges an agent in the world in which it has just learned.
        """
        if self.run.change_every and self.step % self.run.change_every == 0:
            for episodes in self.episodes:
                episodes.move_to(world_at(self.run, episodes.seed, self.step))
            self._test_environments = []

    @property
    def evaluations(self) -> int:
        """The number of evaluations, including the one due at this step."""
        return math.ceil(self.step / self.run.evaluate_every)

    def measure(self) -> pl.DataFrame:
        """Evaluate the members without noise; return these and their training returns as rows in the store's schema."""
        rows: list[Row] = []
        task = self.evaluations - 1
        for member, scores in enumerate(self._evaluate()):
            rows.append((member, task, "diverged", float(member in self.stopped)))
            if member in self.stopped:
                rows.append((member, task, "stopped", float(self.stopped[member])))
                scores = random_returns(self._test_environments[member], self.run.seeds[member], self.step)
            rows.append((member, task, "return", float(scores.mean())))
            if self.returns[member]:
                rows.append((member, task, "training_return", float(np.mean(self.returns[member]))))
            self.returns[member] = []
        if self.run.inside and len(self.replay):
            rows += self._look_inside(task)
        return pl.DataFrame(rows, schema=SCHEMA, orient="row")

    def state_dict(self) -> dict[str, Any]:
        """All state except the rows of the buffer, which are in its file."""
        return {
            "agent": self.agent.state_dict(),
            "plays": [episodes.state_dict() for episodes in self.episodes],
            "replay": self.replay.state_dict(),
            "counts": [self.step, self.updates, self.resets],
            "stopped": dict(self.stopped),
            "returns": self.returns,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of :meth:`state_dict`.

        Raises:
            ChangedDataError: when the buffer does not hold the rows that it held then; nothing is changed.
        """
        self.replay.load_state_dict(state["replay"])
        self.agent.load_state_dict(state["agent"])
        self.step, self.updates, self.resets = state["counts"]
        for episodes, saved in zip(self.episodes, state["plays"], strict=True):
            episodes.environment = world_at(self.run, episodes.seed, self.step)
            episodes.load_state_dict(saved)
        self.stopped, self.returns = dict(state["stopped"]), [list(returns) for returns in state["returns"]]

    def _act(self) -> None:
        """Step every member whose actions are finite; add zero rows for stopped members."""
        observations = np.stack([episodes.observation for episodes in self.episodes])
        actions = self._actions(observations)
        self._stop_diverged(actions)
        active = [index for index in range(len(self.episodes)) if index not in self.stopped]
        steps = [Step(np.zeros_like(observations[0]), 0.0, terminal=True, last=True)] * len(self.episodes)
        parallel_map = self._pool.map if self._pool else map
        results = parallel_map(lambda index: self.episodes[index].step(actions[index]), active)
        for index, (step, finished_return) in zip(active, results, strict=True):
            steps[index] = step
            if finished_return is not None:
                self.returns[index].append(finished_return)
        self.replay.add(
            observations,
            np.nan_to_num(actions),
            np.array([step.reward for step in steps], np.float32),
            np.array([step.terminal for step in steps], np.float32),
            np.stack([step.observation for step in steps]),
        )

    def _stop_diverged(self, actions: np.ndarray) -> None:
        """Stop members whose actions are not finite, because their networks have diverged."""
        for index, action in enumerate(actions):
            if index not in self.stopped and not np.isfinite(action).all():
                self.stopped[index] = self.step

    def _actions(self, observations: np.ndarray) -> np.ndarray:
        generators = self._generators(Stream.EXPLORATION, self.step)
        shape = self.episodes[0].environment.action_size
        if self.step < self.run.constants.random_steps:
            return np.stack([random.uniform(-1, 1, shape).astype(np.float32) for random in generators])
        noise = torch.from_numpy(np.stack([random.standard_normal(shape, np.float32) for random in generators]))
        return self.agent.act(self._on_device(observations), noise.to(self.device)).cpu().numpy()

    def _learn(self, generators: list[np.random.Generator], updates: int) -> None:
        """Take ``updates`` updates, each on a new minibatch."""
        with matmul_precision(self.run.matmul_precision):
            for index, (batch, noise) in enumerate(self._minibatches(generators, updates), 1):
                if index == updates and self._measures_inside:
                    self._before = inside.weights(self.agent)
                self.agent.update(batch, noise)
                self.updates += 1

    def _minibatches(self, generators: list[np.random.Generator], updates: int) -> Iterator[tuple[Batch, Tensor]]:
        """Minibatches with their noise; all of them are sampled and moved to the device at once."""
        size = self.run.constants.batch_size
        batches = self.replay.sample(generators, updates, size)
        shape = updates, 2, size, batches.action.shape[-1]
        noise = torch.stack([torch.from_numpy(random.standard_normal(shape, np.float32)) for random in generators], 2)
        parts = [part.to(self.device) for part in (*batches, noise)]
        for *batch, drawn in zip(*parts, strict=True):
            yield Batch(*batch), drawn

    def _prime(self, report: Report) -> None:
        ratio = self.run.constants.replay_ratio
        for block, done in enumerate(range(0, self.run.prime, ratio)):
            self._learn(self._generators(Stream.PRIMING, block), min(ratio, self.run.prime - done))
            report(self.step + block)

    def _evaluate(self) -> np.ndarray:
        """Returns ``(members, episodes)`` of the policies' means, in separate environments that step together."""
        if not self._test_environments:
            self._test_environments = [
                [world_at(self.run, seed, self.step - 1, limited=True) for _ in range(self.run.episodes)]
                for seed in self.run.seeds
            ]
        observations = np.stack(
            [
                [env.begin(number(Stream.EVALUATION, seed, self.step, k)) for k, env in enumerate(environments)]
                for seed, environments in zip(self.run.seeds, self._test_environments, strict=True)
            ]
        )
        totals = np.zeros(observations.shape[:2])
        running = np.ones(observations.shape[:2], bool)
        while running.any():
            actions = self.agent.act(self._on_device(observations)).cpu().numpy()
            self._stop_diverged(actions)
            running[list(self.stopped)] = False
            for index, k in np.argwhere(running):
                step = self._test_environments[index][k].step(actions[index, k])
                observations[index, k], running[index, k] = step.observation, not step.last
                totals[index, k] += step.reward
        return totals

    def _look_inside(self, task: int) -> list[Row]:
        generators = self._generators(Stream.INSIDE, self.step)
        metrics = inside.networks(self.agent, *next(self._minibatches(generators, 1)))
        if self._before:
            metrics |= inside.effective_step_sizes(self.agent, self._before)
            self._before = None
        seeds = [number(Stream.INSIDE, seed, self.step, 1) for seed in self.run.seeds]
        members = zip(self._test_environments, seeds, generators, strict=True)
        metrics["overestimation"] = torch.tensor(
            [
                inside.overestimation(self.agent, index, environments[0], seed, random, self.device)
                for index, (environments, seed, random) in enumerate(members)
            ]
        )
        return [
            (member, task, metric, value)
            for metric, values in metrics.items()
            for member, value in enumerate(values.tolist())
            if member not in self.stopped
        ]

    def _on_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def _generators(self, stream: Stream, counter: int) -> list[np.random.Generator]:
        return [generator(stream, seed, counter) for seed in self.run.seeds]


def train(run: Run, report: Report = lambda steps: None, *, root: str, device: str = "cpu") -> None:
    """Train a run in its folder under ``root``; resume after its last evaluation.

    Args:
        run: what to train.
        report: called after each step with the work done, in steps (:meth:`Run.work_until`).
        root: the folder of all runs, on a file system (a local disk is fastest): the buffer is a memory-mapped
            file.
        device: of the agents.
    """
    dry_run(run, root=root, device=device)
    folder = run.folder(root)
    work_on(
        folder,
        run.evaluations,
        lambda: Training(run, buffer=Path(folder.path) / "replay.bin", device=device),
        report,
        amount=lambda parts: run.work_until(min(parts * run.evaluate_every, run.steps)),
    )
