"""Random numbers named by what they are for, whose they are and when: none depends on what was drawn before.

There is no generator to keep: a run that is taken up again finds the same numbers by their names.
"""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What random numbers are drawn for; the numbers are part of every result and never change."""

    # The laboratory's.
    LABELS = 1
    ORDER = 2
    PIXELS = 3
    FLIP = 4
    CLASSES = 5
    PAIRS = 6
    PHASES = 7
    PROBE = 8
    # Control's.
    ACTOR = 11
    CRITIC = 12
    EPISODE = 13
    EXPLORATION = 14
    MINIBATCH = 15
    RESET = 16
    EVALUATION = 17
    PRIMING = 18
    INSIDE = 19


def generator(stream: Stream, seed: int, *counters: int) -> np.random.Generator:
    """Random numbers that depend on nothing but these arguments."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((stream, seed, *counters))))


def number(stream: Stream, seed: int, *counters: int) -> int:
    """A seed for a generator of someone else's, below 2³¹."""
    return int(generator(stream, seed, *counters).integers(2**31))
