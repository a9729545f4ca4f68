"""What the tests of methods share."""

from functools import partial

import pytest

from oracles.training import small_network as small_network_on_the_cpu
from support.method_cases import make_network


@pytest.fixture
def make(device):
    """Builds one of the networks of :mod:`support.method_cases` on the device."""
    return partial(make_network, device=device)


@pytest.fixture
def small_network(device):
    """Builds the network that methods are compared with their oracles on; the oracles stay on the CPU."""
    return lambda: small_network_on_the_cpu().to(device)
