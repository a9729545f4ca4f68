"""Runs a method's kernels in a training step, and handles missing gradients, pruning and half precision for them."""

from collections.abc import Iterable, Mapping
from typing import Any, Self

import torch
from torch import Tensor
from torch.optim import Optimizer

from supple.kernels.power_iteration import without_autocast
from supple.kernels.sharding import is_sharded, lay_out_gradient, local
from supple.mitigators.attaching import check_step_sizes
from supple.mitigators.kernels import SEED_OFFSET, Kernels, Update
from supple.mitigators.optimizers import StepSize, memory_of, sizes_by, step_size
from supple.mitigators.rounding import HALF, rounded_at_random
from supple.mitigators.states import Tensors


class KernelRunner(Kernels):
    """Runs the kernels in a step.

    Parameters without a gradient are left out. Kernels get pruned parameters as the forward pass uses them, and only
    entries that the masks keep are written back. They get half-precision parameters in float32.
    """

    _arguments: tuple[tuple[Any, ...], dict[str, Any]]
    """What it was built with, except the network."""

    # Here, because inspect.signature() prefers it to an __init__ of the same class, and commands read the signature.
    def __new__(cls, *arguments: Any, **options: Any) -> Self:
        method = super().__new__(cls)
        options.pop("network", None)
        method._arguments = arguments[1:], options
        return method

    def _add_to_gradients(
        self,
        parameters: Tensors,
        step_sizes: dict[int, StepSize | None] | None = None,
        grad_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
    ) -> bool:
        """Add the method's gradient to each ``.grad``, possibly scaled by ``grad_scale``; return whether any exists.

        A parameter without a gradient stays without one, so the optimizer still skips it.
        """
        if not self.acts_on_gradients:
            return False
        for name, parameter in parameters.items():
            if parameter.grad is not None and parameter.grad.is_sparse:
                raise ValueError(
                    f"expected a dense gradient, got a sparse one for {name!r}: build its embedding with sparse=False, "
                    f"or leave it out with roles={{{name!r}: None}}"
                )
        parameters = with_gradients(parameters)
        if not parameters:
            return False
        if self._pieces:
            for parameter in filter(is_sharded, parameters.values()):
                lay_out_gradient(parameter)
        sizes = {name: (step_sizes or {}).get(id(parameter)) for name, parameter in parameters.items()}
        gradients = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
        parameters, gradients = self._local_shards(parameters), self._local_shards(gradients)
        if grad_scale is not None:  # a power of two, so dividing and multiplying back are exact
            torch._foreach_div_(list(gradients.values()), grad_scale)
        if found_inf is not None:  # the optimizer will skip this step; infinite gradients must not enter the state
            for gradient in gradients.values():
                gradient.masked_fill_(found_inf.bool(), 0)
        with without_autocast(self._first):
            self._add_to(gradients, parameters, sizes)
        if grad_scale is not None:
            torch._foreach_mul_(list(gradients.values()), grad_scale)
        return True

    def _add_to(self, gradients: Tensors, parameters: Tensors, step_sizes: Mapping[str, StepSize | None]) -> None:
        """Run ``add_gradients``, which reads pruned entries as zero; the gradients of these entries do not change.

        It gets tensors of half precision in float32, and the sums are rounded without bias: plain rounding would lose
        additions that are small beside the gradient.
        """
        options = {"step_sizes": step_sizes} if self.takes_step_sizes else {}
        pruned = self._masks_of(parameters)
        halves = [name for name, gradient in gradients.items() if gradient.dtype in HALF]
        wide = parameters | {name: parameters[name].float() for name in halves}
        into = gradients | {name: gradients[name].clone() for name in pruned}
        into |= {name: gradients[name].float() for name in halves}
        self.add_gradients(self._unpruned(wide), into, self._local_state(), self.strength, **options)
        randoms = self._rounding_generators(gradients[name].device for name in halves)
        for name in dict.fromkeys((*halves, *pruned)):
            gradient, new = gradients[name], into[name]
            if name in halves:
                new = rounded_at_random(new, gradient.dtype, randoms[gradient.device])
            gradient.copy_(torch.where(pruned[name].bool(), new, gradient) if name in pruned else new)

    def _act_after_step(self, optimizer: Optimizer, parameters: Tensors) -> None:
        found_inf = getattr(optimizer, "found_inf", None)  # 1 if GradScaler made a fused optimizer skip this step
        strength = self.strength if found_inf is None else self.strength * (1 - found_inf)
        update = _update_of(optimizer, parameters, found_inf)
        if self.needs_step_sizes and len(update.step_sizes) < len(parameters):
            check_step_sizes(self, optimizer)
        moved = self._local_shards({name: p for name, p in parameters.items() if name not in update.idle})
        halves = [name for name, p in moved.items() if p.dtype in HALF] if self.makes_small_changes else []
        wide = moved | {name: moved[name].float() for name in halves}
        changed = self._unpruned(wide)
        with without_autocast(self._first):
            self.change_parameters(changed, self._local_state(), strength, update)
        pruned = self._masks_of(moved)
        for name, mask in pruned.items():
            wide[name] = torch.where(mask.bool(), changed[name], wide[name])
        randoms = self._rounding_generators(moved[name].device for name in halves)
        for name in dict.fromkeys((*halves, *pruned)):
            part, new = moved[name], wide[name]
            part.copy_(rounded_at_random(new, part.dtype, randoms[part.device]) if name in halves else new)

    def _rounding_generators(self, devices: Iterable[torch.device]) -> dict[torch.device, torch.Generator]:
        """One generator per device, seeded by the number of calls so far, so only this count is saved."""
        devices = set(devices)
        self._rounding_steps += bool(devices)
        return {device: torch.Generator(device).manual_seed(SEED_OFFSET + self._rounding_steps) for device in devices}


def with_gradients(parameters: Tensors) -> Tensors:
    return {name: parameter for name, parameter in parameters.items() if parameter.grad is not None}


def _update_of(optimizer: Optimizer, parameters: Tensors, skipped: Tensor | None) -> Update:
    sizes = sizes_by(step_size, optimizer)
    idle = {name: local(parameter.detach()) for name, parameter in parameters.items() if parameter.grad is None}
    memory = {name: memory_of(optimizer, parameter) for name, parameter in parameters.items()}
    moments = {
        name: {key: value for key, value in entry.items() if isinstance(value, Tensor)}
        for name, entry in memory.items()
    }
    # Not "if (size := ...)": torch.compile cannot read a value that is named inside a comprehension (Python 3.11).
    sized = [(name, sizes[id(parameter)]) for name, parameter in parameters.items()]
    present = {name: size for name, size in sized if size is not None}
    return Update(present, moments, memory, skipped, idle)
