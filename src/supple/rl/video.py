"""A look at what an agent has learned: an episode as a strip of pictures."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from supple.rl.envs import DmControl, make
from supple.rl.run import Run
from supple.rl.train import Training
from supple.runs.streams import Stream, number


def strip(run: Run, root: str, *, pictures: int = 8, size: int = 240) -> Path:
    """Play an episode of the run's first member, as its checkpoint is, without noise; the PNG file.

    Args:
        run: one that has been trained.
        root: the folder of all runs.
        pictures: how many, side by side, evenly over the episode.
        size: of each, in pixels.

    Raises:
        FileNotFoundError: when the run has no checkpoint yet.
        ValueError: when nothing can be drawn here.
    """
    folder = run.folder(root)
    checkpoint = folder.checkpoint()
    if not checkpoint:
        raise FileNotFoundError(f"expected a trained run in {folder.path}, found no checkpoint: train it first")
    training = Training(run, compiled=False)
    training.agent.load_state_dict(checkpoint.state["agent"])
    world = _stage(run.problem)
    observation = world.begin(number(Stream.EVALUATION, run.seeds[0], 0, 0))
    shown: list[np.ndarray] = []
    step, last = 0, False
    while not last:
        if step % 10 == 0:
            shown.append(_drawn(world, size))
        seen = torch.from_numpy(observation).expand(len(run.seeds), -1)
        step, (observation, _, _, last) = step + 1, world.step(training.agent.act(seen)[0].numpy())
    chosen = [shown[round(index)] for index in np.linspace(0, len(shown) - 1, pictures)]
    path = Path(folder.path) / "episode.png"
    Image.fromarray(np.concatenate(chosen, axis=1)).save(path)
    return path


def rehearse(problem: str) -> None:
    """Make sure, before hours of training, that pictures of this task can be drawn.

    Raises:
        ValueError: when they can't.
    """
    world = _stage(problem)
    world.begin(0)
    _drawn(world, 8)


def _stage(problem: str) -> DmControl:
    world = make(problem)
    if not isinstance(world, DmControl):
        raise ValueError(f"expected a task of the suite to draw, got {problem!r}: watch it with Gymnasium's wrappers")
    return world


def _drawn(world: DmControl, size: int) -> np.ndarray:
    try:
        return world.render(size)
    except Exception as error:  # each GL library fails in a way of its own
        raise ValueError(
            f"expected a GL library to draw with, got {error}: install EGL or OSMesa and set MUJOCO_GL=egl or osmesa"
        ) from error
