"""Continual backprop (Dohare et al., 2024): each step a few of the least useful units make room for new ones."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from supple.mitigators.base import State, Strength, Tensors
from supple.mitigators.unit_resets import Activity, Initializer, UnitResets
from supple.population import Population
from supple.power_iteration import working_dtype
from supple.roles import Kind, Role
from supple.units import UnitGroup, Units, put, take


class ContinualBackprop(UnitResets):
    r"""Replace, at a steady rate, the units that the next layer makes least use of.

    .. math:: u_i \gets \beta u_i + (1 - \beta)\, \operatorname{mean} |h_i| \cdot \operatorname{mean}_j |w_{ji}|,
              \qquad \hat u_i = u_i / (1 - \beta^{a_i})

    with h what the next layer is given, w its weights and a a unit's age in steps. Each step a share ρ of the units
    older than the maturity is replaced, those with the least û; fractions are carried over. A new unit's incoming
    weights are drawn from the layer's initialisation, its bias, its outgoing weights and what the optimizer remembers
    of all these are 0, and the old unit's mean contribution is added to the next layer's bias.

    Args:
        network: a module or a :class:`Population`.
        strength: ρ, the replacement rate, at most 1. 1e-4 is the paper's: of 256 units one every 39 steps.
        maturity: steps for which a new unit is safe, 100 in the paper: it has no outgoing weights yet.
        decay: β, 0.99 in the paper.
        at_once: at most so many units of a layer are replaced in one step, the others in the next; None for one in 64,
            which keeps up with rates to 0.015.
        units: which units, where the search of :func:`supple.units.find_units` does not find them.
        initializer: ``initializer(weights, generator)`` fills a unit's incoming weights in place; None for torch's own
            default, uniform in ± 1/√fan-in.
        roles: None for a parameter leaves out the units that it belongs to.
        seed: of the new weights.

    Raises:
        ValueError: for a rate above 1, a negative maturity, a decay outside [0, 1), ``at_once`` below 1, for a network
            without a unit that can be replaced alone, and in a step, before anything changes, for an optimizer whose
            state is not known entry by entry.
        RuntimeError: in the first step when there were no activations.

    Departures from the paper: where a convolution leads into a linear layer, a unit's mean contribution is that of its
    mean over all places; where both ends of a weight are replaced it becomes 0.

    Source: Dohare et al., *Loss of Plasticity in Deep Continual Learning*, 2024, algorithm 1.

    >>> network = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    >>> optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    >>> method = ContinualBackprop(network, strength=0.25, maturity=0).attach(optimizer)
    >>> network(torch.ones(4, 2)).sum().backward()
    >>> optimizer.step()
    >>> int((network[2].weight == 0).sum())
    1
    """

    largest_strength = 1.0

    def __init__(
        self,
        network: nn.Module | Population,
        strength: Strength = 1e-4,
        *,
        maturity: int = 100,
        decay: float = 0.99,
        at_once: int | None = None,
        units: Units | None = None,
        initializer: Initializer | None = None,
        roles: Mapping[str, Kind | Role | None] | None = None,
        seed: int = 0,
    ) -> None:
        if maturity < 0:
            raise ValueError(f"expected a maturity of at least 0 steps, got {maturity}: the paper's is 100")
        if not 0 <= decay < 1:
            raise ValueError(f"expected a decay from 0 to below 1, got {decay}: the paper's is 0.99")
        self.maturity, self.decay = maturity, decay
        super().__init__(
            network, strength, at_once=at_once, units=units, initializer=initializer, roles=roles, seed=seed
        )

    def _first_state(self, group: UnitGroup) -> Tensors:
        sizes = {"age": group.size, "utility": group.size, "mean": group.size, "owed": 1}
        return {key: self._zeros(group, size) for key, size in sizes.items()}

    def _choose(
        self, group: UnitGroup, step: int, activity: Activity, tensors: Tensors, state: State, strength: Strength
    ) -> tuple[Tensor, Tensor]:
        age, utility, mean, owed = (state[group.name][key] for key in ("age", "utility", "mean", "owed"))
        age.add_(activity.seen)
        news = (1 - self.decay) * activity.seen.to(utility.dtype)
        utility.lerp_(activity.magnitude * self._outgoing(group, tensors), news)
        mean.lerp_(activity.mean, news)
        correction = (1 - self.decay**age).clamp_min(1e-9)

        mature = age > self.maturity
        grown = mature.sum(-1, keepdim=True, dtype=owed.dtype)
        owed.add_(strength * grown)
        # One number of candidates for all members and steps, so that nothing waits for the device.
        most = self._most(group)
        count = torch.minimum(owed.floor(), grown).clamp_max(most) * (strength > 0)
        owed.sub_(count)
        worth = torch.where(mature, utility / correction, math.inf)
        which = worth.topk(most, largest=False).indices
        chosen = torch.arange(most, device=which.device) < count

        contribution = torch.where(chosen, take(mean / correction, which), 0.0)
        for consumer in group.leaving:
            if consumer.bias in tensors:
                weights = take(consumer.weight.by_unit(tensors[consumer.weight.name], group.size, age.ndim - 1), which)
                totals = weights.flatten(age.ndim + 1).sum(-1)  # (members…, k, out)
                tensors[consumer.bias].add_((totals * contribution.unsqueeze(-1)).sum(-2).to(totals.dtype))
        for tensor in (age, utility, mean):
            put(tensor, which, chosen, 0.0)
        return which, chosen

    def _outgoing(self, group: UnitGroup, tensors: Tensors) -> Tensor:
        """The mean size of each unit's outgoing weights, ``(members…, n)``."""
        members = len(self._members)
        total, count = torch.zeros(()), 0
        for consumer in group.leaving:
            weights = consumer.weight.by_unit(tensors[consumer.weight.name], group.size, members)
            others = tuple(range(members + 1, weights.ndim))
            total = total + torch.linalg.vector_norm(weights, ord=1, dim=others, dtype=working_dtype(weights))
            count += math.prod(weights.shape[members + 1 :])
        return total / count
