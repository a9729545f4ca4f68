"""Shared by all tests."""

import pytest
import torch

torch.set_num_threads(1)  # the tensors are small, and two threads collapse where others use the cores too
torch.backends.cudnn.allow_tf32 = False  # convolutions on a GPU as exact as on the CPU, which they are compared with
torch.backends.cudnn.deterministic = True  # many tests compare two computations to the bit


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module", params=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def device(request: pytest.FixtureRequest) -> str:
    """The CPU, and a GPU where there is one: a test that takes this runs on both.

    Its scope lets Hypothesis' tests take it.
    """
    return request.param
