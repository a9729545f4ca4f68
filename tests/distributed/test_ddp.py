"""DistributedDataParallel: every rank has the whole network and part of the batch, and all stay equal to the bit."""

import copy
from collections.abc import Iterable
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from supple import ReDo
from support.method_cases import CLASSES, build
from support.ranks import run_checks

UNITS = ("ContinualBackprop", "ReDo", "SelfNormalizedResets")


def test_ddp():
    run_checks(__file__, 2)


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)
    ).double()


def train(network: nn.Module, optimizer: torch.optim.Optimizer, part: slice, steps: Iterable[int] = range(9)) -> None:
    for step in steps:
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step), dtype=torch.float64)[part]
        optimizer.zero_grad()
        (network(x) - x[:, :3].sin()).square().mean().backward()
        optimizer.step()


def adam(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(network.parameters(), lr=0.01)


def my_part() -> slice:
    share = 8 // distributed.get_world_size()
    return slice(distributed.get_rank() * share, (distributed.get_rank() + 1) * share)


def flat(network: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def same_on_all_ranks(tensor: Tensor) -> bool:
    copies = [torch.empty_like(tensor) for _ in range(distributed.get_world_size())]
    distributed.all_gather(copies, tensor)
    return all(torch.equal(one, tensor) for one in copies)


def check_ranks_stay_equal_and_do_what_one_process_does(folder: Path) -> None:
    for name in CLASSES:
        plain, single = mlp(), mlp()
        wrapped = DistributedDataParallel(copy.deepcopy(single))
        optimizers = {n: adam(n) for n in (plain, single, wrapped)}
        methods = [build(name, n).attach(optimizers[n]) for n in (single, wrapped)]
        train(plain, optimizers[plain], slice(None))
        train(single, optimizers[single], slice(None))
        train(wrapped, optimizers[wrapped], my_part())
        assert same_on_all_ranks(flat(wrapped)), name
        for entry in methods[1].state_dict().values():
            for key, tensor in entry.items():
                assert same_on_all_ranks(tensor), (name, key)
        torch.testing.assert_close(flat(wrapped), flat(single), rtol=1e-8, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")
        acts = not methods[0].acts_at_task_start  # in a step
        assert torch.allclose(flat(single), flat(plain), rtol=1e-6) != acts, name


def check_methods_that_judge_no_units_may_know_the_inner_network(folder: Path) -> None:
    for name in CLASSES:
        if name not in UNITS:
            network = mlp()
            optimizer = adam(network)
            build(name, network).attach(optimizer)
            train(DistributedDataParallel(network), optimizer, my_part())
            assert same_on_all_ranks(flat(network)), name


def check_methods_that_judge_units_want_the_wrapped_network(folder: Path) -> None:
    for name in UNITS:
        network = mlp()
        optimizer = adam(network)
        method = build(name, network).attach(optimizer)
        wrapped = DistributedDataParallel(network)
        with pytest.raises(RuntimeError, match="expected a network wrapped in DistributedDataParallel"):
            train(wrapped, optimizer, my_part(), range(8))
        method.detach()


def check_one_message_in_the_steps_that_judge(folder: Path) -> None:
    wrapped = DistributedDataParallel(mlp())
    optimizer = adam(wrapped)
    ReDo(wrapped, every=3).attach(optimizer)
    sent = []
    for step in range(6):
        with patch.object(distributed, "all_reduce", wraps=distributed.all_reduce) as all_reduce:
            train(wrapped, optimizer, my_part(), [step])
        sent.append(all_reduce.call_count)
    assert sent == [0, 0, 1, 0, 0, 1]
