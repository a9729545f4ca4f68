"""What a step would wait for on an accelerator, seen on a CPU."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
READS = {
    aten._local_scalar_dense,
    aten.equal,
    aten.is_nonzero,
    aten.masked_select,
    aten.nonzero,
    aten._unique2,
    aten.unique_dim,
    aten.repeat_interleave,
}
"""Operators whose result, or its size, the host must know before it goes on."""


class Waits(TorchDispatchMode):
    """Records every read of a value on the host that was computed from some tensors, as if they lay on a device.

    Args:
        tensors: those that would lie there; what is computed from them follows.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self.found: list[str] = []
        self._kept: list[Tensor] = []  # a storage that is gone could lend its identity to another
        self._on_device: set[int] = set()
        self._put_on_device(tensors)

    def _put_on_device(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            self._kept.append(tensor)
            self._on_device.add(tensor.untyped_storage()._cdata)

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        result = operator(*args, **kwargs)
        if any(tensor.untyped_storage()._cdata in self._on_device for tensor in given):
            masks = operator.overloadpacket in {aten.index, aten.index_put, aten.index_put_} and any(
                tensor.dtype == torch.bool for tensor in tree_leaves(args[1]) if isinstance(tensor, Tensor)
            )
            if masks or operator.overloadpacket in READS:
                self.found.append(str(operator))
            self._put_on_device(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        return result
