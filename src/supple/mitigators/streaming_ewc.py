"""Streaming elastic weight consolidation (Elsayed & Mahmood, 2024): important weights stay near their average."""

import torch
from torch import Tensor, nn

from supple.kernels.power_iteration import working_dtype
from supple.mitigators.base import Mitigator
from supple.mitigators.kernels import Strength, times_strength
from supple.mitigators.states import State, Tensors
from supple.network.population import Population
from supple.network.roles import Overrides


class StreamingEWC(Mitigator):
    r"""Keep important weights near their average: adds the gradient :math:`\lambda \hat F \odot (\theta - \bar\theta)`.

    :math:`\bar\theta` and :math:`\hat F` are moving averages, with decay β and corrected for their start from zero, of
    the weights and of the squared mini-batch gradient. Task boundaries are not needed. The penalty is
    :math:`\frac{1}{2} \sum_i \hat F_i (\theta_i - \bar\theta_i)^2`, with the averages taken as constants.

    Args:
        network: a module or a :class:`Population`.
        strength: λ.
        decay: β, 0.999 as in the source.
        roles: None for a parameter leaves it out; the role itself makes no difference here.

    It squares the gradient in ``.grad``: attach it before other methods that add to ``.grad``. :meth:`penalty` does not
    update the averages; only :meth:`before_step` does.

    Source: Elsayed & Mahmood, *Addressing Loss of Plasticity and Catastrophic Forgetting in Continual Learning*, 2024,
    after Kirkpatrick et al., 2017.
    """

    works_on_shards = True

    def __init__(
        self,
        network: nn.Module | Population,
        strength: Strength = 1.0,
        *,
        decay: float = 0.999,
        roles: Overrides | None = None,
    ) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"expected a decay from 0 to below 1, got {decay}: the source's is 0.999")
        super().__init__(network, strength, roles=roles)
        self.decay = decay
        self.state = {
            name: {
                # At least float32: bfloat16 would lose a new value, whose weight is only 1 - β.
                "mean": torch.zeros_like(parameter.detach(), dtype=working_dtype(parameter)),
                # The average times the sum 1 + β + β² + …: its update needs no temporary tensor.
                "fisher": torch.zeros_like(parameter.detach(), dtype=working_dtype(parameter)),
                "weight": torch.zeros((), dtype=working_dtype(parameter), device=parameter.device),  # that sum
            }
            for name, parameter in self.parameters.items()
        }

    def add_gradients(self, parameters: Tensors, gradients: Tensors, state: State, strength: Strength) -> None:
        means, fishers, weights = ([state[name][key] for name in gradients] for key in ("mean", "fisher", "weight"))
        present = [parameters[name].to(mean.dtype) for name, mean in zip(gradients, means, strict=True)]
        into = list(gradients.values())
        torch._foreach_mul_(weights, self.decay)
        torch._foreach_add_(weights, 1)
        shares = [*torch._foreach_reciprocal(weights)]
        torch._foreach_lerp_(means, present, shares)
        torch._foreach_mul_(fishers, self.decay)
        torch._foreach_addcmul_(fishers, into, into)
        pulls = torch._foreach_sub(present, means)
        torch._foreach_mul_(pulls, times_strength(shares, strength, means))
        torch._foreach_addcmul_(into, fishers, pulls)

    def _penalty(self, parameters: Tensors) -> Tensor:
        sums, state = {}, self._local_state()
        for name, parameter in parameters.items():
            mean, fisher, weight = (state[name][key] for key in ("mean", "fisher", "weight"))
            terms = fisher / weight.clamp_min(1) * (parameter - mean).square() / 2
            sums[name] = self.roles[name].vector(terms).sum(-1)
        return sum(self._sum_over_ranks(sums).values(), super()._penalty(parameters))
