"""An episode of a trained agent as a strip of images."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from supple.rl.envs import DmControl, Environment, make
from supple.rl.run import Run
from supple.rl.train import Training
from supple.rl.worlds import Rearranged, world_at
from supple.runs.streams import Stream, number

IMAGES = 8
"""Side by side, evenly spaced over the episode."""
SIZE = 240
"""Height and width of an image, in pixels."""


def strip(run: Run, root: str) -> Path:
    """Play an episode with the run's first member from its checkpoint, without noise; return the path of the PNG file.

    A changing world is shown in its last state.

    Args:
        run: a trained run.
        root: the folder of all runs.

    Raises:
        FileNotFoundError: when the run has no checkpoint yet.
        ValueError: when this machine can't render the task.
    """
    folder = run.folder(root)
    checkpoint = folder.checkpoint()
    if not checkpoint:
        raise FileNotFoundError(f"expected a trained run in {folder.path}, found no checkpoint: train it first")
    training = Training(run, compiled=False)
    training.agent.load_state_dict(checkpoint.state["agent"])
    world = world_at(run, run.seeds[0], run.steps - 1)
    drawable = _from_suite(world.original if isinstance(world, Rearranged) else world, run.problem)
    observation = world.begin(number(Stream.EVALUATION, run.seeds[0], 0, 0))
    shown: list[np.ndarray] = []
    step, last = 0, False
    while not last:
        if step % 10 == 0:
            shown.append(_render(drawable, SIZE))
        seen = torch.from_numpy(observation).expand(len(run.seeds), -1)
        step, (observation, _, _, last) = step + 1, world.step(training.agent.act(seen)[0].numpy())
    chosen = [shown[round(index)] for index in np.linspace(0, len(shown) - 1, IMAGES)]
    path = Path(folder.path) / "episode.png"
    Image.fromarray(np.concatenate(chosen, axis=1)).save(path)
    return path


def check(problem: str) -> None:
    """Check, before hours of training, that this machine can render the task.

    Raises:
        ValueError: when it can't.
    """
    world = _from_suite(make(problem), problem)
    world.begin(0)
    _render(world, 8)


def _from_suite(world: Environment, problem: str) -> DmControl:
    """The environment, checked to be one that can be rendered."""
    if not isinstance(world, DmControl):
        raise ValueError(f"expected a task of the suite to draw, got {problem!r}: watch it with Gymnasium's wrappers")
    return world


def _render(world: DmControl, size: int) -> np.ndarray:
    try:
        return world.render(size)
    except Exception as error:  # each GL library raises its own exceptions
        raise ValueError(
            f"expected a GL library to draw with, got {error}: install EGL or OSMesa and set MUJOCO_GL=egl or osmesa"
        ) from error
