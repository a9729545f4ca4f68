"""Random numbers depend only on purpose, seed and step, never on earlier draws.

So no generator state is saved: a resumed run gets the same numbers as an uninterrupted one.
"""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """The purpose of random numbers. Never change these values: every result depends on them."""

    # For supple.lab.
    LABELS = 1
    ORDER = 2
    PIXELS = 3
    FLIP = 4
    CLASSES = 5
    PAIRS = 6
    PHASES = 7
    PROBE = 8
    SAMPLE = 9
    # For supple.rl.
    ACTOR = 11
    CRITIC = 12
    EPISODE = 13
    EXPLORATION = 14
    MINIBATCH = 15
    RESET = 16
    EVALUATION = 17
    PRIMING = 18
    INSIDE = 19
    RANDOM_POLICY = 20
    CHANGE = 21


def generator(stream: Stream, seed: int, *counters: int) -> np.random.Generator:
    """A generator whose numbers depend only on these arguments."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((stream, seed, *counters))))


def number(stream: Stream, seed: int, *counters: int) -> int:
    """A seed below 2³¹ for another library's generator."""
    return int(generator(stream, seed, *counters).integers(2**31))
