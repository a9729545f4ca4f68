"""What the tests of methods share."""

from functools import partial

import pytest

from support.method_cases import make_network


@pytest.fixture
def make(device):
    """Builds one of the networks of :mod:`support.method_cases` on the device."""
    return partial(make_network, device=device)
