"""Hare and tortoise (Lee et al., 2024): resets the network at intervals to a slow average of itself."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from supple.kernels.power_iteration import working_dtype
from supple.mitigators.base import Mitigator
from supple.mitigators.kernels import Strength, Update, is_due, move_towards
from supple.mitigators.states import GLOBAL, State, Tensors
from supple.network.population import Population
from supple.network.roles import Overrides


class HareAndTortoise(Mitigator):
    r"""Keep a moving average of the parameters, and set the parameters to it every ``every`` steps.

    .. math:: \bar\theta \gets \beta \bar\theta + (1 - \beta)\,\theta \quad\text{each step},\qquad
              \theta \gets \bar\theta \quad\text{every } T \text{ steps}

    Args:
        network: a module or a :class:`Population`.
        strength: the fraction of the way to the average, from 0 (none) to 1 (all of it: the published method).
        decay: β, 0.999 as in the source.
        every: T, the steps between returns to the average. The source returns once in some epochs, about as often as
            its resets of whole networks.
        roles: None for a parameter leaves it out; the role itself makes no difference here.

    Raises:
        ValueError: for a strength above 1, a decay outside [0, 1) or a period below 1.

    The running statistics of torch's norms are averaged and set too, in the steps of the optimizer that holds the first
    parameter. The source averages every buffer; here the others stay as they are, because an average would destroy a
    causal mask of −∞. The optimizer's state is kept. In the authors' code the parameters share the average's memory
    after a return, so that the next step moves the average in full; here they are copied.

    If :class:`torch.amp.GradScaler` makes a fused optimizer skip the step in which a return is due, the next step
    returns instead. Other skipped steps count as steps.

    Source: Lee et al., *Slow and Steady Wins the Race: Maintaining Plasticity with Hare and Tortoise Networks*, 2024.
    """

    largest_strength = 1.0
    traceable = False
    scheduled = True
    works_on_shards = True
    makes_small_changes = False

    def __init__(
        self,
        network: nn.Module | Population,
        strength: Strength = 1.0,
        *,
        decay: float = 0.999,
        every: int = 1000,
        roles: Overrides | None = None,
    ) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"expected a decay from 0 to below 1, got {decay}: the source's is 0.999")
        if every < 1:
            raise ValueError(f"expected a period of at least 1 step, got every={every}: 1000 is the default")
        super().__init__(network, strength, roles=roles)
        self.decay, self.every = decay, every
        self.state = {
            name: {"slow": parameter.detach().to(working_dtype(parameter), copy=True)}
            for name, parameter in self.parameters.items()
        }
        norms = {name for name, module in self._module.named_modules() if isinstance(module, _NormBase)}
        statistics = {
            name: buffer
            for name, buffer in self._module.named_buffers()
            if name.rpartition(".")[0] in norms and name.endswith(("running_mean", "running_var"))
        }
        self._statistics = list(statistics)
        for name, fast in statistics.items():
            self.state[name] = {"slow": fast.to(working_dtype(fast), copy=True)}
        # One count per parameter: the parameters may be split between optimizers.
        self.state[GLOBAL] = {name: torch.zeros((), dtype=torch.int64, device="cpu") for name in self.parameters}

    def change_parameters(self, parameters: Tensors, state: State, strength: Strength, update: Update) -> None:
        counted, steps = {**parameters, **update.idle}, state[GLOBAL]
        # Statistics belong to no optimizer: they go with the first parameter that any optimizer trains.
        leader = next((name for name in self.parameters if name in counted or steps[name] > 0), None)
        for name, parameter in counted.items():
            tensors = {name: parameter}
            if name == leader:
                tensors |= {statistic: self._module.get_buffer(statistic) for statistic in self._statistics}
            is_back = is_due(steps[name], self.every, update)
            for tensor_name, fast in tensors.items():
                slow = state[tensor_name]["slow"]
                slow.lerp_(fast.to(slow.dtype), 1 - self.decay)
                if is_back and tensor_name not in update.idle:
                    move_towards(fast, slow, strength)
