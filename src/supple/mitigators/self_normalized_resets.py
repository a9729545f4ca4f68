"""Self-normalized resets (Farias & Jozefiak, 2024): resets a unit that is silent for longer than usual."""

import torch
from torch import Tensor, nn

from supple.mitigators.initializers import Initializer
from supple.mitigators.kernels import Strength, per_member
from supple.mitigators.states import State, Tensors
from supple.mitigators.unit_resets import Activity, Choice, UnitResets
from supple.network.population import Population
from supple.network.roles import Overrides
from supple.network.units import UnitGroup, Units, write_rows

_MIN_TIMES = 10
"""The number of inter-firing times from which a unit is judged by its own times."""


class SelfNormalizedResets(UnitResets):
    r"""Reset a unit that has been silent for longer than nearly all of its earlier silences.

    .. math:: \text{reset unit } i \text{ where } t_i > Q_{1 - \eta}(A_i)

    with t the steps since the unit last fired (was not zero on the whole batch), A its last inter-firing times and Q a
    quantile. So a unit that usually fires in every step is reset soon, and one that fires rarely is given more time. A
    new unit's incoming weights are drawn from the layer's initialization; its bias, its outgoing weights and the
    optimizer's state of all these are 0. Parameters with a step size of 0 are changed too: freeze them with
    ``requires_grad_(False)``.

    Units behind ReLU can be silent; those behind tanh or GELU never are, unless ``quiet`` sets a limit above 0.

    Args:
        network: a module or a :class:`Population`.
        strength: η, below 1: the fraction of a unit's earlier silences that are long enough for a reset; 0.02 means the
            98th percentile.
        history: how many inter-firing times are stored for each unit (one number each). 100 are enough to tell
            percentiles apart.
        refresh: steps between updates of the quantiles; with 100 the sorting costs little.
        patience: how many steps a unit may be silent if it has not fired often enough to be judged by its own times.
        quiet: a unit is silent in a step if its mean |h| is at most this fraction of its layer's mean; 0: exactly zero.
        every: steps between resets, 10: searching for units takes more time than counting silences.
        at_once: the maximum number of a layer's units to reset at once; the longest silent come first, the others at
            the next reset. None means one in 8.
        units: which units, if :func:`supple.network.units.find_units` does not find them.
        initializer: ``initializer(weights, generator)`` fills a unit's incoming weights in place; None for the
            layer's own ``reset_parameters()``: torch's is uniform in ± 1/√fan-in. Weights that were set in another way
            (a pretrained network, ``network.apply``) need an initializer if their scale is to be kept.
        roles: None for a parameter leaves out the units that it belongs to.
        seed: of the new weights.

    Raises:
        ValueError: for a strength above 1, a ``history``, ``refresh``, ``patience``, ``every`` or ``at_once`` below 1,
            a negative ``quiet``, for a network without a unit that can be replaced alone, and in a step, before
            anything changes, for an optimizer whose state cannot be reset entry by entry.
        RuntimeError: in the first step, if there were no activations.

    Departures from the paper: a window of the last times instead of all of them; ``patience``; ``quiet``; ``every`` and
    ``at_once``. Departures from the authors' code: it leaves times of 0 out of the distribution (a unit that fires in
    every step has times of 1 here), and it doubles or contracts a threshold towards the quantile instead of computing
    the quantile, starts to count a step later, and has neither ``every`` nor ``at_once``: if all units of a layer die
    together, it replaces them some 40 steps sooner. As in the authors' code a reset ends a silence, whose length is
    added to the stored times, and the new unit keeps the old one's times: if the units at one position keep dying, it
    is reset less and less often.

    Source: Farias & Jozefiak, *Self-Normalized Resets for Plasticity in Continual Learning*, 2024, algorithm 1.

    >>> network = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 1))
    >>> optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    >>> method = SelfNormalizedResets(network, patience=5, every=1, at_once=64).attach(optimizer)
    >>> _ = nn.init.constant_(network[0].bias, -9.0)  # all units are silent
    >>> for _ in range(6):
    ...     network(torch.ones(4, 2)).sum().backward()
    ...     optimizer.step()
    >>> bool((network[0].bias == 0).all())
    True
    """

    largest_strength = 1.0

    def __init__(
        self,
        network: nn.Module | Population,
        strength: Strength = 0.02,
        *,
        history: int = 100,
        refresh: int = 100,
        patience: int = 1000,
        quiet: float = 0.0,
        every: int = 10,
        at_once: int | None = None,
        units: Units | None = None,
        initializer: Initializer | None = None,
        roles: Overrides | None = None,
        seed: int = 0,
    ) -> None:
        numbers = {"history": history, "refresh": refresh, "patience": patience, "every": every, "at_once": at_once}
        for name, value in numbers.items():
            if value is not None and value < 1:
                raise ValueError(f"expected {name} of at least 1, got {value}: leave it out for the default")
        if not quiet >= 0:
            raise ValueError(f"expected quiet of at least 0, got {quiet}: 0 means exact silence")
        self.history, self.refresh, self.patience, self.quiet = history, refresh, patience, quiet
        self.every, self.at_once = every, at_once
        super().__init__(network, strength, units=units, initializer=initializer, roles=roles, seed=seed)

    def _first_state(self, group: UnitGroup) -> Tensors:
        return {
            "silent": self._zeros(group, group.size),
            "times": self._zeros(group, group.size, self.history),
            "count": self._zeros(group, group.size).long(),
            "threshold": self._zeros(group, group.size).fill_(self.patience),
        }

    def _choose(
        self, group: UnitGroup, step: int, activity: Activity, tensors: Tensors, state: State, strength: Strength
    ) -> Choice | None:
        silent, times, count, threshold = (state[group.name][key] for key in ("silent", "times", "count", "threshold"))
        silent.add_(activity.seen)
        quiet = self.quiet * activity.magnitude.mean(-1, keepdim=True) if self.quiet else 0.0
        ended = activity.magnitude > quiet
        choice = None
        if step % self.every == 0:
            missed = (silent > threshold) & ~ended & (strength > 0)
            silence, which = torch.where(missed, silent, 0.0).sort(dim=-1, descending=True, stable=True)
            most = min(group.size, self.at_once or -(-group.size // 8))
            choice = Choice(which[..., :most], silence[..., :most] > 0)
            write_rows(ended, *choice[:2], True)
        place = (count % self.history).unsqueeze(-1)
        times.scatter_(-1, place, torch.where(ended.unsqueeze(-1), silent.unsqueeze(-1), times.gather(-1, place)))
        count.add_(ended)
        silent.masked_fill_(ended, 0.0)
        if step % self.refresh == 0:
            own = per_member(self.strength, count.ndim)  # the argument is 0 if GradScaler skipped the step
            threshold.copy_(self._quantile(times, count, own))
        return choice

    def _quantile(self, times: Tensor, count: Tensor, strength: Strength) -> Tensor:
        """For each unit, the smallest of its times such that at most a fraction η of its times are longer."""
        kept = count.clamp_max(self.history)
        longer = (strength * kept + 1e-4).long().clamp(0, self.history - 1)  # 0.29 · 100 is below 29 in float64
        own = times.sort(-1, descending=True).values.gather(-1, longer.unsqueeze(-1)).squeeze(-1)
        return torch.where(kept >= min(_MIN_TIMES, self.history), own, float(self.patience))
