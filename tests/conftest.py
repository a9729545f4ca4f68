"""Shared by all tests."""

import pytest
import torch

torch.set_num_threads(1)  # the tensors are small, and two threads collapse where others use the cores too


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    torch.manual_seed(0)
