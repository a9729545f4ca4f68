"""ReDo (Sokar et al., 2023): reinitializes units that hardly respond."""

import torch
from torch import nn

from supple.mitigators.initializers import Initializer
from supple.mitigators.kernels import Strength
from supple.mitigators.states import State, Tensors
from supple.mitigators.unit_resets import Activity, Choice, UnitResets
from supple.network.population import Population
from supple.network.roles import Overrides
from supple.network.units import UnitGroup, Units, redo_scores


class ReDo(UnitResets):
    r"""Every ``every`` steps, reinitialize the dormant units: those with a small share of their layer's activity.

    .. math:: s_i = \frac{\operatorname{mean} |h_i|}{\operatorname{mean}_j \operatorname{mean} |h_j| + 10^{-9}},
              \qquad \text{dormant where } s_i \le \tau

    A new unit's incoming weights are drawn from the layer's initialization. Its bias and outgoing weights are 0, so it
    does not change the output at first. The optimizer's state of these entries is set to 0. Parameters with a step size
    of 0 are changed too: freeze them with ``requires_grad_(False)``.

    Args:
        network: a module or a :class:`Population`.
        strength: τ. 0.1 worked well in all of the paper's settings; the paper's cautious default is 0.025.
        every: steps between resets, 1000 in the paper.
        units: which units, if :func:`supple.network.units.find_units` does not find them.
        initializer: ``initializer(weights, generator)`` fills a unit's incoming weights in place; None for the
            layer's own ``reset_parameters()``: torch's is uniform in ± 1/√fan-in. Weights that were set in another way
            (a pretrained network, ``network.apply``) need an initializer if their scale is to be kept.
        roles: None for a parameter leaves out the units that it belongs to.
        seed: of the new weights.

    Raises:
        ValueError: for a period below 1, for a network without a unit that can be replaced alone, and in a step, before
            anything changes, for an optimizer whose state cannot be reset entry by entry.
        RuntimeError: in the first step that needs activations, if there were none.

    Departures from the paper: τ = 0 switches the method off instead of resetting units that are always zero; h is the
    next layer's input, after norms and pooling; the score is computed on the step's own batch; a weight between two
    units that are both reset becomes 0; and the optimizer's state of biases is set to 0 too, which the authors' code
    leaves (``google/dopamine``).

    Source: Sokar et al., *The Dormant Neuron Phenomenon in Deep Reinforcement Learning*, 2023, definition 3.1, alg. 1.

    >>> network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> _ = nn.init.constant_(network[0].bias, -9.0)  # all units are silent
    >>> optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    >>> method = ReDo(network, every=1).attach(optimizer)
    >>> network(torch.ones(4, 2)).sum().backward()
    >>> optimizer.step()
    >>> network[0].bias.tolist(), network[2].weight.tolist()
    ([0.0, 0.0, 0.0], [[0.0, 0.0, 0.0]])
    """

    scheduled = True

    def __init__(
        self,
        network: nn.Module | Population,
        strength: Strength = 0.1,
        *,
        every: int = 1000,
        units: Units | None = None,
        initializer: Initializer | None = None,
        roles: Overrides | None = None,
        seed: int = 0,
    ) -> None:
        if every < 1:
            raise ValueError(f"expected a period of at least 1 step, got every={every}: the paper's is 1000")
        self.every = every
        super().__init__(network, strength, units=units, initializer=initializer, roles=roles, seed=seed)

    def _needs_activations(self, step: int) -> bool:
        return step % self.every == 0

    def _choose(
        self, group: UnitGroup, step: int, activity: Activity, tensors: Tensors, state: State, strength: Strength
    ) -> Choice:
        score = redo_scores(activity.magnitude)
        dormant = (score <= strength) & activity.seen & (strength > 0)
        return Choice(torch.arange(group.size, device=score.device).expand(score.shape), dormant)
