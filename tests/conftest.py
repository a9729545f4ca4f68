"""Shared by all tests."""

import gc

import pytest
import torch
from hypothesis import HealthCheck, settings

# How fast an example is depends on what else the machine does.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
torch.set_num_threads(1)  # the tensors are small, and two threads collapse where others use the cores too
torch.backends.cudnn.allow_tf32 = False  # convolutions on a GPU as exact as on the CPU, which they are compared with
torch.backends.cudnn.deterministic = True  # many tests need two computations to agree exactly


LONGEST = ("tests/test_kills.py", "tests/test_gpu_command.py", "tests/test_package.py", "tests/lab/test_engines.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests come first: at the end, other workers would have nothing left to do beside them."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))


def pytest_collection_finish() -> None:
    """Leave thousands of tests out of every later collection of garbage, which would take a third of a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module", params=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def device(request: pytest.FixtureRequest) -> str:
    """The CPU, and a GPU where there is one: a test that takes this runs on both.

    Its scope lets Hypothesis' tests take it.
    """
    return request.param
