"""Tensors in pieces on several ranks (DTensors, as FSDP2 and tensor parallelism make them), and sums over ranks.

All that a training step needs of the other ranks are sums. A computation on a piece is a generator that yields what is
to be summed, goes on when the sum has taken its place, and returns its result. :func:`together` runs those of a whole
network side by side, so that their sums travel in one message.
"""

import sys
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, distributed, nn

if TYPE_CHECKING:  # takes a second to import, and is loaded wherever there is a DTensor
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class Ranks:
    """Those that have different parts of a sum."""

    ranks: tuple[int, ...]
    device_type: str
    """Of what they send: offloaded parameters lie elsewhere."""
    group: distributed.ProcessGroup = field(compare=False)


Summing = Generator[tuple[Tensor, Sequence[Ranks]], None, Any]


def together(computations: Iterable[Any]) -> list[Any]:
    """The results of computations, of which those that are generators want sums over ranks: one message a round."""
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
    """Put each tensor's sum over its ranks in its place."""
    for ranks in dict.fromkeys(ranks for _, all_ranks in wanted for ranks in all_ranks):
        tensors = [tensor for tensor, all_ranks in wanted if ranks in all_ranks]
        message = torch.cat([tensor.flatten() for tensor in tensors]).to(ranks.device_type)
        distributed.all_reduce(message, group=ranks.group)
        for tensor, total in zip(tensors, message.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))


def reshard(network: nn.Module) -> None:
    """Show the shards that an optimizer holds: after a forward pass FSDP2 shows the outermost parameters gathered."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None:
        for module in network.modules():
            if isinstance(module, fsdp.FSDPModule):
                module.reshard()


def is_sharded(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether it is a DTensor, also one of which each rank holds a copy."""
    return hasattr(tensor, "placements")


def local(tensor: Tensor) -> Tensor:
    """The piece of a DTensor that lies here, sharing its memory; any other tensor as it is."""
    piece: Tensor = tensor.to_local() if is_sharded(tensor) else tensor
    return piece


def copy_whole_or_piece(into: Tensor, source: Tensor) -> None:
    """``into.copy_(source)``, where a DTensor also takes its piece of a whole tensor, the same on every rank."""
    if is_sharded(into) and not is_sharded(source):
        from torch.distributed.tensor import distribute_tensor

        source = distribute_tensor(source.detach(), into.device_mesh, into.placements, src_data_rank=None)
    into.copy_(source)


def lay_out_gradient(parameter: "DTensor") -> None:
    """Make the gradient's pieces those of the parameter; tensor parallelism leaves some for the optimizer to sum."""
    gradient = parameter.grad
    if gradient is not None and is_sharded(gradient) and gradient.placements != parameter.placements:
        parameter.grad = gradient.redistribute(parameter.device_mesh, parameter.placements)


def ranks_along(mesh: "DeviceMesh", dim: int) -> Ranks:
    """Those that share what is sharded along one dimension of the mesh."""
    return ranks_of(mesh.get_group(dim), mesh.device_type)


def ranks_of(group: distributed.ProcessGroup, device_type: str) -> Ranks:
    return Ranks(tuple(distributed.get_process_group_ranks(group)), device_type, group)
