"""Records the activations of hidden units with a hook on the layer that receives them."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.nn.parallel import DistributedDataParallel

from supple.mitigators.states import Tensors
from supple.network.population import outside_vmap
from supple.network.units import Consumer, UnitGroup


class Recorder:
    """A hook that sums the inputs of a layer; it refers only to its sums, so that networks can be copied.

    Values that are not finite are left out: they would stay in every sum. If the group's ``state`` has ``past`` and
    ``present``, magnitudes are measured from ``past + present * (mean of this batch)`` instead of from 0.
    """

    def __init__(
        self, group: UnitGroup, consumer: Consumer, sums: Tensors, state: Tensors, slot: int | None, shares: bool
    ) -> None:
        self.group, self.consumer, self.sums, self.state = group, consumer, sums, state
        self.slot, self.shares = slot, shares
        self.enabled = True
        self._examples: int | None = None
        self.saw: bool | None
        """Whether there were examples since the last step; None without a forward pass."""
        self.recall()

    def recall(self) -> None:
        """Find out from the sums, which may be a checkpoint's, whether there were examples."""
        self.saw = bool(self.sums["forwards"].any()) or None

    @property
    def __name__(self) -> str:
        """Refuses ``torch.jit.script``, which asks for the name first and would then fail with an unclear error."""
        caller = inspect.currentframe()
        if caller is not None and caller.f_back is not None and "torch.jit" in caller.f_back.f_globals["__name__"]:
            raise RuntimeError(
                "expected a network without a method that observes activations, such as ReDo, got one with: torch.jit "
                "cannot script its hooks, so call method.detach() first, and attach it again afterwards"
            )
        return "Recorder"

    def expect(self, layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, inputs: tuple[Any, ...], output: Tensor) -> None:
        """A hook on the convolution that computes the units: the linear layer must get the same number of examples.

        A trace has no sizes, so it cannot tell a ``view(-1, n)`` that flattens each example from one that turns
        channels into examples.
        """
        if self._is_active(layer) and not torch.compiler.is_compiling():
            self._examples = len(output) if output.ndim > 1 + len(layer.kernel_size) else 1

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        if not self._is_active(layer):
            return
        activations: Tensor = (inputs[0] if inputs else named["input"]).detach()
        self.saw = bool(self.saw or activations.numel())
        if not activations.numel():  # without examples nothing is known about the units
            return
        if torch.compiler.is_compiling():
            if self.slot is None and self.sums["forwards"].ndim > 1:
                raise NotImplementedError(
                    "expected a population that is not compiled, got a compiled one: this method observes activations, "
                    "so run the forward pass without torch.compile"
                )
            self._add(activations)
            return
        # Clear it now: if checkpointing reruns this layer in the backward pass, the count may be from another batch.
        expected, self._examples = self._examples, None
        if expected is not None and expected != (given := activations.numel() // activations.shape[-1]):
            raise ValueError(
                f"expected {expected} examples in {self.consumer.path!r} as in {self.group.name!r}, got {given}: "
                "flatten each example separately, as flatten(1) does, or, if batches are joined or divided in between, "
                'name each layer with units and the layer that it feeds: units=[("entering layer", "leaving layer"), '
                "...]"
            )
        if not self.shares and DistributedDataParallel._get_active_ddp_module() is not None:
            raise RuntimeError(
                "expected a network wrapped in DistributedDataParallel, got the one inside, whose units each rank "
                "would judge by its own batches: build the method from the wrapped network"
            )
        if torch._C._functorch.is_functorch_wrapped_tensor(activations):  # a population under torch.vmap
            with temporarily_clear_interpreter_stack():
                self._add(outside_vmap(activations))
        else:
            self._add(activations)

    def _is_active(self, layer: nn.Module) -> bool:
        return self.enabled and layer.training and torch.is_grad_enabled()

    @torch.no_grad()
    def _add(self, activations: Tensor) -> None:
        members = self.sums["forwards"].ndim - 1 if self.slot is None else 0
        spatial, size = self.consumer.spatial, self.group.size
        units = activations.ndim - 1 - spatial
        if units == members:  # a single example, without a batch
            activations, units = activations.unsqueeze(members), units + 1
        if activations.shape[units] != size:  # flattened: a unit has several adjacent entries
            activations = activations.unflatten(units, (size, -1))
        others = [dim for dim in range(members, activations.ndim) if dim != units]
        count = max(1, activations.numel() // activations.shape[:members].numel() // size)
        dtype = self.sums["mean"].dtype
        sizes = activations - self._centre(activations, others) if "past" in self.state else activations
        added = {"magnitude": sizes.abs().sum(others, dtype=dtype)}
        finite = added["magnitude"].isfinite().all(-1, keepdim=True)
        if self.sums["mean"].numel():
            added["mean"] = activations.sum(others, dtype=dtype)
        for key, tensor in self.sums.items():
            if tensor.device != activations.device:  # the network was moved
                self.sums[key] = tensor.to(activations.device)
            into = self.sums[key] if self.slot is None else self.sums[key][self.slot]
            if key in added:
                into.add_(torch.where(finite, added[key], 0.0), alpha=1 / count)
            elif key == "forwards":
                into.add_(finite)

    def _centre(self, activations: Tensor, others: list[int]) -> Tensor:
        mean = activations.mean(others, keepdim=True)
        past, present = (
            (tensor if self.slot is None else tensor[self.slot]).to(mean).view_as(mean)
            for tensor in (self.state["past"], self.state["present"])
        )
        return past + present * mean
