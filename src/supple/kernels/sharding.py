"""Tensors that are sharded over ranks (DTensors of FSDP2 and tensor parallelism), and sums over ranks.

A training step needs only sums from the other ranks. A computation on a shard is a generator: it yields a tensor to be
summed, continues when the tensor holds the sum, and returns its result. :func:`run_in_lockstep` advances the
computations of a whole network together, so that their sums share one message.
"""

import sys
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, distributed, nn

if TYPE_CHECKING:  # takes a second to import; already imported if a DTensor exists
    from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class Ranks:
    """A group of ranks that hold different parts of a sum."""

    ranks: tuple[int, ...]
    device_type: str
    """The device type of their messages; offloaded parameters are on another device."""
    group: distributed.ProcessGroup = field(compare=False)


Summing = Generator[tuple[Tensor, Sequence[Ranks]], None, Any]


def run_in_lockstep(computations: Iterable[Any]) -> list[Any]:
    """The results of computations. Generators among them need sums over ranks: each round of sums is one message."""
    results = list(computations)
    going = {index: entry for index, entry in enumerate(results) if isinstance(entry, Generator)}
    while going:
        wanted = []
        for index, computation in list(going.items()):
            try:
                wanted.append(next(computation))
            except StopIteration as end:
                results[index] = end.value
                del going[index]
        sum_over_ranks(wanted)
    return results


def sum_over_ranks(wanted: Sequence[tuple[Tensor, Sequence[Ranks]]]) -> None:
    """Replace each tensor by its sum over its ranks, in place."""
    for ranks in dict.fromkeys(ranks for _, all_ranks in wanted for ranks in all_ranks):
        tensors = [tensor for tensor, all_ranks in wanted if ranks in all_ranks]
        message = torch.cat([tensor.flatten() for tensor in tensors]).to(ranks.device_type)
        distributed.all_reduce(message, group=ranks.group)
        for tensor, total in zip(tensors, message.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))


def reshard(network: nn.Module) -> None:
    """Put the optimizer's shards back into the modules: FSDP2 leaves the outermost parameters gathered after a pass."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None:
        for module in network.modules():
            if isinstance(module, fsdp.FSDPModule):
                module.reshard()


def is_sharded(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether it is a DTensor, even if each rank holds a full copy."""
    return hasattr(tensor, "placements")


def local(tensor: Tensor) -> Tensor:
    """This rank's shard of a DTensor, sharing its memory; any other tensor unchanged."""
    piece: Tensor = tensor.to_local() if is_sharded(tensor) else tensor
    return piece


def copy_whole_or_piece(into: Tensor, source: Tensor) -> None:
    """``into.copy_(source)``; if ``into`` is a DTensor, ``source`` may be a whole tensor, equal on every rank."""
    if is_sharded(into) and not is_sharded(source):
        from torch.distributed.tensor import distribute_tensor

        source = distribute_tensor(source.detach(), into.device_mesh, into.placements, src_data_rank=None)
    into.copy_(source)


def lay_out_gradient(parameter: "DTensor") -> None:
    """Shard the gradient like the parameter; tensor parallelism may leave partial sums for the optimizer to add."""
    gradient = parameter.grad
    if gradient is not None and is_sharded(gradient) and gradient.placements != parameter.placements:
        parameter.grad = gradient.redistribute(parameter.device_mesh, parameter.placements)


def ranks_of(group: distributed.ProcessGroup, device_type: str) -> Ranks:
    return Ranks(tuple(distributed.get_process_group_ranks(group)), device_type, group)
