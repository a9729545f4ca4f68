"""Functions that tests name as ``package.module:function`` and that are wrong, as a user may write them."""

from torch import nn

import supple


def nothing(*arguments, **options):
    return None


def broken(*arguments, **options):
    raise KeyError("my own mistake")


def leaves(*arguments, **options):
    raise SystemExit


def needs_more(first, second, third, fourth):
    return None


def without_parameters(data):
    return nn.Flatten()


def with_three_outputs(data):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


def for_other_images(data):
    return nn.Sequential(nn.Flatten(), nn.Linear(63, 10))


def no_method(network, strength=0.1):
    return network


class Broken(supple.Mitigator):
    """Fails in its first step."""

    def __init__(self, network, strength=0.1) -> None:
        super().__init__(network, strength)

    def change_parameters(self, parameters, state, strength, update) -> None:
        raise KeyError("my own mistake")


def beyond_the_classes(data, seed, task):
    from supple.lab.shifts import random_labels

    found = random_labels(data, seed, task)
    found.labels.add_(data.classes)
    return found
