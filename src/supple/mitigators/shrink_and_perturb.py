"""Shrink and perturb (Ash & Adams, 2020): shrinks the weights a little and adds a little randomness."""

from typing import Literal, get_args

import torch
from torch import nn

from supple.errors import known
from supple.mitigators.base import Mitigator
from supple.mitigators.fresh import FreshParameters
from supple.mitigators.kernels import Strength, Update, move_towards, per_member
from supple.mitigators.states import State, Tensors
from supple.network.population import Population
from supple.network.roles import Overrides

Variant = Literal["step-fresh", "step-noise", "task"]


class ShrinkAndPerturb(Mitigator):
    r"""Shrink the parameters and add something random to them: :math:`\theta \gets (1 - s)\,\theta + s\,p\,\xi`.

    ===============  ========================================  ==============================================
    variant          when                                      ξ
    ===============  ========================================  ==============================================
    ``step-fresh``   after each step (Kumar et al., 2023)      a fresh initialization
    ``step-noise``   after each step, shrinking by the step    standard normal
                     size times s, as weight decay does
                     (Dohare et al., 2024)
    ``task``         where ``start_task()`` is called          a fresh initialization
                     (Ash & Adams, 2020)
    ===============  ========================================  ==============================================

    Args:
        network: a module or a :class:`Population`.
        strength: s: 1e-5 to 1e-2 in each step, 1e-4 to 5e-4 for ``step-noise``, 0.2 to 0.8 for ``task``.
        perturb: p, the perturbation for each unit of shrinking. 1 keeps the scale of the initialization (Kumar et al.
            tune both: on random labels their code has s = 1e-4 and p = 100); for ``step-noise`` 0.1 gives the source's
            noise of 1e-5 at its weight decay of 1e-4.
        variant: as above. The step forms do not need to know when a task begins.
        roles: None for a parameter leaves it out; the role itself makes no difference here.
        seed: of the perturbation.

    Raises:
        ValueError: for a strength above 1, a negative ``perturb`` or an unknown variant.

    Fresh values come from each module's own ``reset_parameters()``; an initialization that your code applied afterwards
    is not repeated, so the parameters drift from it to the modules' own. ``step-noise`` also perturbs an embedding's
    ``padding_idx`` row: leave that embedding out with ``roles``. Parameters with a step size of 0 are changed too:
    freeze them with ``requires_grad_(False)``.

    The code of Ash & Adams keeps 0.4 of the parameters and adds 0.1 of fresh ones: s = 0.6 and p = 1/6 with ``task``.
    It also starts the running statistics of norms again; this class keeps them.

    ``step-noise`` shrinks after the optimizer's step (decoupled), as AdamW does. The source leaves the decay to the
    optimizer. With SGD that is nearly the same; with Adam the decay goes through the moments (to repeat that, give Adam
    the ``weight_decay`` and choose a small s with a large p).

    Random numbers are half of a step's cost. For layers on a CPU that initialize their weights uniformly,
    ``step-fresh`` therefore draws only 16 bits per weight: one of 65,536 values.

    Source: Ash & Adams, *On Warm-Starting Neural Network Training*, 2020.
    """

    largest_strength = 1.0
    traceable = False

    def __init__(
        self,
        network: nn.Module | Population,
        strength: Strength = 1e-4,
        *,
        perturb: float | None = None,
        variant: Variant = "step-fresh",
        roles: Overrides | None = None,
        seed: int = 0,
    ) -> None:
        self.variant = known(variant, get_args(Variant), "variant")
        self.perturb = (0.1 if variant == "step-noise" else 1.0) if perturb is None else perturb
        if not self.perturb >= 0:
            raise ValueError(f"expected a perturbation p of at least 0, got {perturb}: 1 keeps the initial scale")
        super().__init__(network, strength, roles=roles)
        self._fresh, self.needs_step_sizes = None, variant == "step-noise"
        self.acts_at_task_start = variant == "task"
        self.acts_on_parameters = variant != "task"
        if variant != "step-noise":
            self._fresh = FreshParameters(network, list(self.parameters), coarse=variant == "step-fresh")
        self._seed(seed)

    @torch.no_grad()
    def start_task(self) -> None:
        """Shrink and perturb once, at the start of a task, as ``variant="task"``; the others act in steps only."""
        if self.acts_at_task_start:
            self._shrink(self._trainable(), self.strength)

    def change_parameters(self, parameters: Tensors, state: State, strength: Strength, update: Update) -> None:
        if self.variant != "task":
            self._shrink(parameters, strength, update)

    def _shrink(self, parameters: Tensors, strength: Strength, update: Update | None = None) -> None:
        fresh = self._fresh.draw(self._generators) if self._fresh else {}
        for name, parameter in parameters.items():
            if self._fresh:
                move_towards(parameter, fresh[name] if self.perturb == 1 else self.perturb * fresh[name], strength)
            elif update:
                noise = self._random(parameter, lambda part, random: part.normal_(generator=random))
                change = self.perturb * noise - update.step_sizes[name] * parameter
                parameter.add_(per_member(strength, parameter.ndim) * change)
