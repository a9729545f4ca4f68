"""A look at what an agent has learned: an episode as a strip of pictures."""

import struct
import zlib
from pathlib import Path

import numpy as np
import torch

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
    world = make(run.problem)
    if not isinstance(world, DmControl):
        raise ValueError(
            f"expected a task of the suite to draw, got {run.problem!r}: watch it with Gymnasium's wrappers"
        )
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
    path.write_bytes(png(np.concatenate(chosen, axis=1)))
    return path


def png(picture: np.ndarray) -> bytes:
    """A picture ``(height, width, 3)`` of bytes as a PNG file."""
    height, width, _ = picture.shape
    lines = np.concatenate([np.zeros((height, 1), np.uint8), picture.reshape(height, -1)], axis=1)  # 0: no filter
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(lines.tobytes())),
        (b"IEND", b""),
    ]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def _drawn(world: DmControl, size: int) -> np.ndarray:
    try:
        return world.render(size)
    except Exception as error:  # each GL library fails in a way of its own
        raise ValueError(
            f"expected a GL library to draw with, got {error}: install EGL or OSMesa and set MUJOCO_GL=egl or osmesa"
        ) from error
