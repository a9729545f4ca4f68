"""Every kind of parameter, sharded in every way, against the same network in one process."""

import copy
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

from oracles.regularizers import owned
from supple import L2InitRegularizer, Role, SpectralRegularizer, StreamingEWC
from supple.mitigators import Mitigator
from support.ranks import run_checks
from support.resting import resting
from support.zoo import ZOO


def test_pieces():
    run_checks(__file__, 3)  # more than the smallest parameters have rows


def sharded(network: nn.Module, mesh: DeviceMesh, placements: Sequence[Placement]) -> nn.Module:
    """A copy whose parameters are DTensors; a dimension that one does not have counts from the end of what it has.

    Numbers are on every rank.
    """
    network, done = copy.deepcopy(network), {}
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter not in done:
                where = [Shard(min(p.dim, parameter.ndim - 1)) if p.is_shard() else p for p in placements]
                where = where if parameter.ndim else [Replicate() for _ in placements]
                shards = distribute_tensor(parameter.detach(), mesh, where, src_data_rank=None)
                done[parameter] = nn.Parameter(shards)
            setattr(module, name, done[parameter])
    return network


def meshes() -> Iterable[tuple[DeviceMesh, Sequence[Placement]]]:
    """Shards of each dimension, also of both, also on two dimensions of a mesh."""
    line = init_device_mesh("cpu", (distributed.get_world_size(),))
    for dim in range(3):
        yield line, [Shard(dim)]
    yield line, [Replicate()]
    if distributed.get_world_size() == 4:
        square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))
        for dims in ((0, 0), (0, 1), (1, 0), (1, 1), (1, 2)):
            yield square, [Shard(dim) for dim in dims]
        yield square, [Replicate(), Shard(0)]
        yield square, [Shard(1), Replicate()]


def close(actual: Tensor, expected: Tensor, what: object) -> None:
    """Whether a tensor, or this rank's piece of one, is what is expected of the whole."""
    expected = expected.detach()
    if isinstance(actual, DTensor):
        expected = distribute_tensor(expected, actual.device_mesh, actual.placements, src_data_rank=None).to_local()
        actual = actual.to_local()
    tolerance = 1e-12 if expected.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(
        actual.detach(), expected, rtol=tolerance, atol=tolerance, msg=lambda message: f"{what}: {message}"
    )


def same_on_all_ranks(tensor: Tensor, what: object) -> None:
    copies = [torch.empty_like(tensor) for _ in range(distributed.get_world_size())]
    distributed.all_gather(copies, tensor.contiguous())
    assert all(torch.equal(one, tensor) for one in copies), what


class Conv1D(nn.Module):
    """As in Hugging Face's GPT-2: the weight is (in, out), in attention with q, k and v side by side."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.nf, self.nx = outputs, inputs
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.randn(outputs))


KINDS = (
    *("linear-1x9", "linear-33x7", "bilinear", "embedding", "tied", "embeddings", "custom", "layer-norm"),
    *("conv2d", "conv2d-grouped", "conv1d-depthwise", "conv-transpose1d", "conv-transpose2d-grouped"),
    *("attention", "attention-bias-kv", "lstm-projected"),
)
"""One of each layout."""


def zoo(dtype: torch.dtype, names: Iterable[str] = KINDS) -> nn.Module:
    """Many kinds of parameters in one network."""
    others = {"c_attn": Conv1D(12, 4), "c_proj": Conv1D(3, 5)}
    return nn.ModuleDict({name: ZOO[name]() for name in names} | others).to(dtype)


def assert_alike(method: Mitigator, other: Mitigator, what: object) -> None:
    for name, parameter in method.parameters.items():
        shards = other.parameters[name]
        close(shards, parameter, (what, name, "parameter"))
        if parameter.grad is not None:
            assert shards.grad.placements == shards.placements
            close(shards.grad, parameter.grad, (what, name, "gradient"))
        for key, tensor in method.state.get(name, {}).items():
            close(other.state[name][key], tensor, (what, name, key))


def check_gradients_steps_and_memory(folder: Path) -> None:
    """Coupled and decoupled at once: one acts on the gradients, the other on the parameters."""
    for mesh, placements in meshes():
        network = zoo(torch.float64)
        networks = (network, sharded(network, mesh, placements))
        pairs, optimizers = [], []
        for n in networks:
            optimizers.append(torch.optim.SGD(n.parameters(), lr=0.01))
            coupled = SpectralRegularizer(n, strength=0.1)
            decoupled = SpectralRegularizer(n, strength=0.1, exponent=1, power_iterations=2, decoupled=True)
            pairs.append((coupled.attach(optimizers[-1]), decoupled))
        for step in range(2):
            matrices = [p for name, p in pairs[0][0].parameters.items() if pairs[0][0].roles[name].kind == "matrix"]
            before = [matrix.detach().clone() for matrix in matrices]
            for n, optimizer, (_, decoupled) in zip(networks, optimizers, pairs, strict=True):
                optimizer.zero_grad()
                resting(n)
                optimizer.step()
                decoupled.after_step(optimizer)
            assert not any(map(torch.equal, before, matrices))
            for pair in zip(*pairs, strict=True):
                assert_alike(*pair, (placements, step))
        expected, seen = (pair[0].spectral_norms() for pair in pairs)
        for name, sigma in expected.items():
            close(seen[name].view_as(sigma), sigma, (placements, name))
        same_on_all_ranks(torch.cat([entry["v"].flatten() for entry in pairs[1][1].state.values()]), placements)


def check_half_and_single_precision(folder: Path) -> None:
    line = init_device_mesh("cpu", (distributed.get_world_size(),))
    for dtype in (torch.float32, torch.bfloat16):
        network = zoo(dtype, ZOO)
        pair = [SpectralRegularizer(n, strength=0.1) for n in (network, sharded(network, line, [Shard(0)]))]
        seen = pair[1].spectral_norms()
        for name, sigma in pair[0].spectral_norms().items():
            close(seen[name].view_as(sigma), sigma, (dtype, name))


def check_penalties_and_their_gradients(folder: Path) -> None:
    for mesh, placements in islice(meshes(), 2):  # by rows, by columns
        network = zoo(torch.float64)
        networks = (network, sharded(network, mesh, placements))
        pairs = [
            [method(network, strength=0.1) for network in networks]
            for method in (SpectralRegularizer, L2InitRegularizer, StreamingEWC)
        ]
        for network, methods in zip(networks, zip(*pairs, strict=True), strict=True):
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter.mul_(1.1)
            resting(network)
            for method in methods:
                method.before_step()  # the averages of streaming EWC begin here
            network.zero_grad()
        for pair in pairs:
            expected, penalty = (method.penalty() for method in pair)
            assert not isinstance(penalty, DTensor)
            close(penalty, expected, (placements, pair))
            same_on_all_ranks(penalty.detach(), (placements, pair))
            for total in (expected, penalty):
                (2 * total).backward()
        assert_alike(*pairs[0], placements)


def check_messages(folder: Path) -> None:
    """Rows on their ranks: one all-reduce a step, as long as all right singular vectors. Columns: one more for u."""
    line = init_device_mesh("cpu", (distributed.get_world_size(),))
    network = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 4), nn.Conv2d(4, 4, 3, groups=2))
    for placement, messages, numbers in (
        (Shard(0), 1, (6 + 1) + (8 + 1) + 2 * (2 * 9 + 1) + 4),
        (Shard(1), 2, (6 + 1) + (8 + 1) + 2 * (2 * 9 + 1) + 4 + (8 + 4 + 2 * 4)),
        (Replicate(), 0, 0),
    ):
        shards = sharded(network, line, [placement])
        regularizer = SpectralRegularizer(shards)
        optimizer = torch.optim.SGD(shards.parameters(), lr=0.1)
        regularizer.attach(optimizer)
        resting(shards)
        with patch.object(distributed, "all_reduce", wraps=distributed.all_reduce) as sent, CommDebugMode() as seen:
            optimizer.step()
        assert seen.get_total_counts() == sent.call_count == messages, (placement, seen.get_comm_counts())
        assert sum(call.args[0].numel() for call in sent.call_args_list) == numbers, placement


def check_gradients_that_wait_for_their_sum(folder: Path) -> None:
    """Tensor parallelism leaves such for parameters of which each rank has a copy."""
    line = init_device_mesh("cpu", (distributed.get_world_size(),))
    network = nn.LayerNorm(5)
    shards = sharded(network, line, [Replicate()])
    features = distribute_tensor(torch.randn(8, 5), line, [Shard(0)])
    network(features.full_tensor()).square().sum().backward()
    shards(features).square().sum().backward()
    assert any(parameter.grad.placements[0].is_partial() for parameter in shards.parameters())
    pair = [SpectralRegularizer(n, strength=0.1) for n in (network, shards)]
    for method in pair:
        method.before_step()
    assert_alike(*pair, ())


def check_a_table_needs_no_other_rank(folder: Path) -> None:
    line = init_device_mesh("cpu", (distributed.get_world_size(),))
    regularizer = SpectralRegularizer(sharded(nn.Linear(3, 2), line, [Shard(0)]))
    if distributed.get_rank() == 0:
        lines = regularizer.describe().splitlines()
        assert lines[1].split() == ["weight", "2x3", "matrix", "1", "sharded", "1.000"]


def check_what_is_refused(folder: Path) -> None:
    line = init_device_mesh("cpu", (distributed.get_world_size(),))
    parts = nn.Linear(4, 3, bias=False)
    parts.weight = nn.Parameter(DTensor.from_local(torch.randn(3, 4), line, [Partial()]))
    with pytest.raises(
        ValueError, match=r"expected a parameter of which this rank has a shard or a copy, got 'weight'"
    ):
        SpectralRegularizer(parts)
    uneven = sharded(nn.Linear(4, 3, bias=False), line, [Shard(0)])
    role = Role("matrix", (3, 4), (2, 2, 3))
    with pytest.raises(ValueError, match=r"dimensions that make up groups, rows and columns, got the layout"):
        SpectralRegularizer(uneven, roles={"weight": role})


def check_what_the_comparisons_rest_on(folder: Path) -> None:
    """Shards that are smaller than the whole, some uneven and some empty."""
    ranks = distributed.get_world_size()
    network = sharded(zoo(torch.float32), init_device_mesh("cpu", (ranks,)), [Shard(0)])
    parameters = [parameter for *_, parameter in owned(network)]
    assert any(parameter.to_local().numel() * ranks not in (0, parameter.numel()) for parameter in parameters)
    assert any(parameter.to_local().numel() == 0 for parameter in parameters) == (distributed.get_rank() > 0)
