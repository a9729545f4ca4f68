"""Network reset (Nikishin et al., 2022; D'Oro et al., 2023): reinitializes the network on a schedule."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from supple.errors import known
from supple.mitigators.base import Mitigator
from supple.mitigators.fresh import FreshParameters
from supple.mitigators.kernels import Strength, Update, is_due, per_member
from supple.mitigators.states import GLOBAL, State, Tensors
from supple.network.find_roles import find_roles, output_matrix
from supple.network.population import Population
from supple.network.roles import Overrides
from supple.network.units import check_moments

_FIRST = {"mu_product": 1}
"""Initial values of optimizers' counters that do not start at 0: NAdam's product of momenta."""


class NetworkReset(Mitigator):
    r"""Every ``every`` steps, reinitialize all layers, or the last ones, with their optimizer state.

    .. math:: \theta \gets (1 - s)\,\theta + s\,\theta_{\text{fresh}}

    Use it only if the training data survive a reset, as a replay buffer does: the new network must learn from them.

    Args:
        network: a module or a :class:`Population`.
        strength: s, the fraction of the way to a fresh network, from 0 (none) to 1 (all of it: the published method).
        every: steps between resets. D'Oro et al. reset every 2.56 million updates of an agent.
        layers: ``"all"``; or a number n, for the last n layers with a weight matrix (in the network's own order) and
            all modules after the first of these; or the names of modules.
        roles: None for a parameter leaves it out.
        seed: of the fresh networks; each reset draws a different one.

    Raises:
        ValueError: for a strength above 1, a period or a number of layers below 1, an unknown module, a module that
            cannot redraw its parameters (it has no ``reset_parameters()``); in a step, before anything changes, for an
            optimizer whose state cannot be reset entry by entry.

    Fresh values come from each module's own ``reset_parameters()``; an initialization that your code applied afterwards
    is not repeated. Batch-norm statistics are reset too, except in modules whose parameters are frozen or left out.
    Parameters with a step size of 0 are reset too: freeze them with ``requires_grad_(False)``. For s below 1, which is
    not in the sources, the optimizer's state is scaled by 1 − s, and its counters, such as Adam's ``step``, continue.
    Members of a population share these counters: they restart only if all members are reset with s = 1.

    If :class:`torch.amp.GradScaler` makes a fused optimizer skip the step in which a reset is due, the next step resets
    instead. Other skipped steps count as steps.

    Source: Nikishin et al., *The Primacy Bias in Deep Reinforcement Learning*, 2022; D'Oro et al., *Sample-Efficient
    Reinforcement Learning by Breaking the Replay Ratio Barrier*, 2023.

    >>> network = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
    >>> before = [parameter.detach().clone() for parameter in network.parameters()]
    >>> optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    >>> method = NetworkReset(network, every=1, layers=1).attach(optimizer)
    >>> (0 * network(torch.ones(1, 2))).sum().backward()
    >>> optimizer.step()
    >>> [bool((old == new).all()) for old, new in zip(before, network.parameters())]
    [True, True, False, False]
    """

    largest_strength = 1.0
    traceable = False
    scheduled = True
    makes_small_changes = False

    def __init__(
        self,
        network: nn.Module | Population,
        strength: Strength = 1.0,
        *,
        every: int = 10_000,
        layers: Literal["all"] | int | Sequence[str] = "all",
        roles: Overrides | None = None,
        seed: int = 0,
    ) -> None:
        if every < 1:
            raise ValueError(f"expected a period of at least 1 step, got every={every}: 10000 is the default")
        super().__init__(network, strength, roles=roles)
        self.every = every
        chosen = self._modules_of(layers)
        self._names = [name for name in self.parameters if name.rpartition(".")[0] in chosen]
        if not self._names:
            raise ValueError(f"expected layers with parameters, got none among layers={layers!r}: name other modules")
        taken = {name.rpartition(".")[0] for name in self._names}
        self._buffers = []
        for name, _ in self._module.named_buffers():
            path, owner = name.rpartition(".")[0], self._owner(name)
            owns_parameters = any(True for _ in owner.parameters(recurse=False))
            if path in (taken if owns_parameters else chosen) and hasattr(owner, "reset_parameters"):
                self._buffers.append(name)
        self._fresh = FreshParameters(network, [*self._names, *self._buffers])
        self._seed(seed)
        # One counter per parameter, on the host: the parameters may be split between optimizers.
        self.state = {GLOBAL: {"steps": torch.zeros(len(self._names), dtype=torch.int64, device="cpu")}}

    def change_parameters(self, parameters: Tensors, state: State, strength: Strength, update: Update) -> None:
        held = {name: parameters[name] for name in self._names if name in parameters}
        check_moments(update.moments, held)
        steps = state[GLOBAL]["steps"]
        furthest = int(steps.max())
        of = dict(zip(self._names, steps, strict=True))  # each a part of steps
        counted = [name for name in self._names if name in parameters or name in update.idle]
        due = [name for name in counted if is_due(of[name], self.every, update)]
        due = [name for name in due if name in held]
        if not due or (not isinstance(self.strength, Tensor) and self.strength == 0):
            return
        fresh = self._fresh.draw(self._generators)
        whole = (torch.as_tensor(strength) >= 1).all()
        for name in due:
            _move(held[name], fresh[name], strength)
            for key, moment in update.moments.get(name, {}).items():
                if moment.ndim:
                    _move(moment, torch.zeros_like(moment), strength)
                else:  # Adam's count of steps: its averages restart
                    _move(moment, torch.full_like(moment, _FIRST.get(key, 0)), whole.to(moment))
            memory = update.memory.get(name, {})
            for key, number in memory.items():
                if isinstance(number, int | float) and whole:
                    memory[key] = type(number)(_FIRST.get(key, 0))
        # Buffers belong to no optimizer. They are reset once, with the parameters that have taken the most steps.
        if any(of[name] > furthest for name in due):
            for name in self._buffers:
                own, buffer = [*self._owner(name).parameters(recurse=False)], self._module.get_buffer(name)
                is_trained = not own or any(parameter.requires_grad for parameter in own)
                if is_trained and buffer.shape == fresh[name].shape:  # a cache may have grown
                    _move(buffer, fresh[name], strength)

    def _owner(self, name: str) -> nn.Module:
        return self._module.get_submodule(name.rpartition(".")[0])

    def _modules_of(self, layers: Literal["all"] | int | Sequence[str]) -> set[str]:
        """The names of the modules whose parameters are reset."""
        modules = dict(self._module.named_modules())
        if layers == "all":
            return set(modules)
        if isinstance(layers, int):
            names = list(modules)
            owners = list(dict.fromkeys(name.rpartition(".")[0] for name in self._matrices))
            if not 1 <= layers <= len(owners):
                raise ValueError(
                    f"expected 1 to {len(owners)} layers (those with a matrix), got {layers}: choose another number"
                )
            everything = find_roles(self._network)
            last = output_matrix(self._network, everything)
            if last != [name for name, role in everything.items() if role.kind == "matrix"][-1]:
                raise ValueError(
                    f"expected a last layer with its own weight, got one tied to {last!r}: name the modules to reset, "
                    'as in layers=["head"]'
                )
            return set(names[names.index(owners[-layers]) :])
        if isinstance(layers, str):
            raise ValueError(f'expected layers="all", a number or a list of names, got {layers!r}: write [{layers!r}]')
        tops = [known(name, modules, "module of this network") for name in layers]
        return {name for name in modules if any(name == top or name.startswith(f"{top}.") for top in tops)}


def _move(tensor: Tensor, fresh: Tensor, strength: Strength) -> None:
    """Move by the fraction ``strength`` of the way to ``fresh``, in place; at 1 exactly ``fresh``, even from NaN.

    Constants stay as they are, also the −∞ of a causal mask, whose average with itself is NaN.
    """
    share = torch.as_tensor(per_member(strength, tensor.ndim), device=tensor.device)
    fresh = fresh.to(tensor)
    between = torch.lerp(tensor, fresh, share.to(tensor.dtype)) if tensor.is_floating_point() else tensor
    tensor.copy_(torch.where((share >= 1) | (tensor == fresh), fresh, between))
