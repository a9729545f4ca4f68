"""Continual backprop (Dohare et al., 2024): each step replaces a few of the least useful units by new ones."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from supple.errors import known
from supple.kernels.power_iteration import working_dtype
from supple.mitigators.initializers import Initializer
from supple.mitigators.kernels import Strength
from supple.mitigators.states import GLOBAL, State, Tensors
from supple.mitigators.unit_resets import Activity, Choice, UnitResets
from supple.network.population import Population
from supple.network.roles import Overrides
from supple.network.units import UnitGroup, Units, rows_of, write_rows

Utility = Literal["contribution", "adaptable contribution"]


class ContinualBackprop(UnitResets):
    r"""Replace, at a constant rate, the units that the next layer uses least.

    .. math:: u_i \gets \beta u_i + (1 - \beta)\, \operatorname{mean} |h_i| \cdot \operatorname{mean}_j |w_{ji}|,
              \qquad \hat u_i = u_i / (1 - \beta^{a_i})

    with h the next layer's input, w its weights and a a unit's age in steps. Each step replaces a fraction ρ of the
    units older than the maturity, those with the smallest û; fractions of units are carried over. A new unit's incoming
    weights are drawn from the layer's initialization; its bias, its outgoing weights and the optimizer's state of all
    these are 0. The old unit's mean contribution is added to the next layer's bias. Parameters with a step size of 0
    are changed too: freeze them with ``requires_grad_(False)``.

    Args:
        network: a module or a :class:`Population`.
        strength: ρ, the replacement rate, at most 1. The paper's is 1e-4: with 256 units, one every 39 steps.
        maturity: steps in which a new unit is not replaced, 100 in the paper: its outgoing weights start at 0.
        decay: β, 0.99 in the paper.
        utility: ``"contribution"`` as above; or ``"adaptable contribution"``, which most of the authors' settings use:
            mean |h − ĥ| in place of mean |h|, with ĥ the corrected moving average of h (this batch included), divided
            by the mean size of the unit's incoming weights. A constant unit is then worth nothing, and a unit with
            small incoming weights, which can change quickly, is worth more.
        units: which units, if :func:`supple.network.units.find_units` does not find them.
        initializer: ``initializer(weights, generator)`` fills a unit's incoming weights in place; None for the
            layer's own ``reset_parameters()``: torch's is uniform in ± 1/√fan-in. Weights that were set in another way
            (a pretrained network, ``network.apply``) need an initializer if their scale is to be kept.
        roles: None for a parameter leaves out the units that it belongs to.
        seed: of the new weights.

    Raises:
        ValueError: for a rate above 1, a negative maturity, a decay outside [0, 1), an unknown utility, for a network
            without a unit that can be replaced alone, and in a step, before anything changes, for an optimizer whose
            state cannot be reset entry by entry.
        RuntimeError: in the first step, if there were no activations.

    Departures from the paper: if a convolution feeds a linear layer, a unit's mean contribution is computed from its
    mean over all places, and its utility is the product of means; a weight between two units that are both replaced
    becomes 0. The authors' code forgets a unit's mean before it adds the contribution to the next bias, so that it adds
    nothing; and by default it draws whether to replace a fraction of a unit, here it is carried over. For convolutions
    it takes the fraction of all units, and moves no mean. With Adam it restarts the step count of a new unit's entries,
    which torch's optimizers share with all others: so a new unit's first ten steps are 3 to 6 times as long here.

    Source: Dohare et al., *Loss of Plasticity in Deep Continual Learning*, 2024, algorithm 1; code:
    github.com/shibhansh/loss-of-plasticity.

    >>> network = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    >>> optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    >>> method = ContinualBackprop(network, strength=0.25, maturity=0).attach(optimizer)
    >>> network(torch.ones(4, 2)).sum().backward()
    >>> optimizer.step()
    >>> int((network[2].weight == 0).sum())
    1
    """

    largest_strength = 1.0
    needs_mean = True

    def __init__(
        self,
        network: nn.Module | Population,
        strength: Strength = 1e-4,
        *,
        maturity: int = 100,
        decay: float = 0.99,
        utility: Utility = "contribution",
        units: Units | None = None,
        initializer: Initializer | None = None,
        roles: Overrides | None = None,
        seed: int = 0,
    ) -> None:
        if maturity < 0:
            raise ValueError(f"expected a maturity of at least 0 steps, got {maturity}: the paper's is 100")
        if not 0 <= decay < 1:
            raise ValueError(f"expected a decay from 0 to below 1, got {decay}: the paper's is 0.99")
        self.maturity, self.decay, self.utility = maturity, decay, known(utility, get_args(Utility), "kind of utility")
        super().__init__(network, strength, units=units, initializer=initializer, roles=roles, seed=seed)

    def _first_state(self, group: UnitGroup) -> Tensors:
        state = {key: self._zeros(group, group.size) for key in ("age", "utility", "mean")}
        if self.utility == "adaptable contribution":
            # The recorder's ĥ: what is left of earlier batches, and the weight of the present one.
            state |= {"past": self._zeros(group, group.size), "present": self._zeros(group, group.size) + 1}
        return state

    def _first_host_state(self, group: UnitGroup) -> Tensors:
        replaced = torch.zeros(*self._members, self.maturity, dtype=torch.float64, device="cpu")
        replaced[..., :1] = group.size  # at the start all units are new
        return {"owed": torch.zeros(*self._members, 1, dtype=torch.float64, device="cpu"), "replaced": replaced}

    def _choose(
        self, group: UnitGroup, step: int, activity: Activity, tensors: Tensors, state: State, strength: Strength
    ) -> Choice | None:
        age, utility, mean = (state[group.name][key] for key in ("age", "utility", "mean"))
        age.add_(1)
        news = (1 - self.decay) * activity.seen.to(utility.dtype)
        utility.lerp_((activity.magnitude * self._worth_of_weights(group, tensors)).to(utility.dtype), news)
        mean.lerp_(activity.mean, news)

        choice = self._choose_least(group, step, tensors, state, strength)
        if self.utility == "adaptable contribution":
            correction = 1 - self.decay ** (age + 1)
            state[group.name]["past"].copy_(self.decay * mean / correction)
            state[group.name]["present"].copy_((1 - self.decay) / correction)
        return choice

    def _choose_least(
        self, group: UnitGroup, step: int, tensors: Tensors, state: State, strength: Strength
    ) -> Choice | None:
        """The units to replace now; their contribution is added to the next bias, and their state set to 0."""
        age, utility, mean = (state[group.name][key] for key in ("age", "utility", "mean"))
        counts = self._count(group, step, state, self._on_host(strength))
        if not any(counts):
            return None
        correction = 1 - self.decay**age
        worth = torch.where(age > self.maturity, utility / correction, math.inf)
        which = worth.argsort(dim=-1, stable=True)[..., : max(counts)]  # dead units have equal utility
        rank = torch.arange(max(counts), device=which.device)
        chosen = rank < torch.tensor(counts, device="cpu").view(*self._members, 1).to(which.device, non_blocking=True)
        chosen = chosen & (torch.as_tensor(strength, device=which.device) > 0)  # 0 where an overflow undid the step

        contribution = torch.where(chosen, rows_of(mean / correction, which), 0.0)
        for consumer in group.leaving:
            if consumer.bias in tensors:
                weights = rows_of(
                    consumer.weight.by_unit(tensors[consumer.weight.name], group.size, age.ndim - 1), which
                )
                totals = weights.flatten(age.ndim + 1).sum(-1)  # (members…, k, out)
                tensors[consumer.bias].add_((totals * contribution.unsqueeze(-1)).sum(-2).to(totals.dtype))
        for tensor in (age, utility, mean):
            write_rows(tensor, which, chosen, 0.0)
        return Choice(which, chosen, counts)

    def _count(self, group: UnitGroup, step: int, state: State, strength: Strength) -> list[int]:
        """How many units each member replaces now, counted on the host.

        The number of mature units does not depend on the activations: it is all units except those replaced in the
        last ``maturity`` steps.
        """
        owed, replaced = (state[GLOBAL][f"{key} in {group.name}"] for key in ("owed", "replaced"))
        mature = group.size - replaced.sum(-1, keepdim=True)
        owed.add_(mature * strength)
        counts = torch.minimum(owed.floor(), mature)
        owed.sub_(counts)
        if self.maturity:
            replaced[..., step % self.maturity] = counts[..., 0]
        return [int(count) for count in counts.flatten().tolist()]

    def _worth_of_weights(self, group: UnitGroup, tensors: Tensors) -> Tensor:
        """The mean size of each unit's outgoing weights, ``(members…, n)``, divided by that of its incoming weights."""
        members, totals, count = len(self._members), [], 0
        for consumer in group.leaving:
            sizes = consumer.weight.by_unit(tensors[consumer.weight.name].abs(), group.size, members)
            totals.append(sizes.sum(tuple(range(members + 1, sizes.ndim)), dtype=working_dtype(sizes)))
            count += math.prod(sizes.shape[members + 1 :])
        outgoing = sum(totals[1:], totals[0]) / count
        if self.utility == "contribution":
            return outgoing
        incoming = group.entering[0].by_unit(tensors[group.entering[0].name].abs(), group.size, members)
        return outgoing / incoming.flatten(members + 1).mean(-1, dtype=outgoing.dtype)
