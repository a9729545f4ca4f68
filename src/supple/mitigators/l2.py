"""L2 regularization: pulls parameters towards zero."""

from torch import Tensor

from supple.mitigators.squared_distance import SquaredDistance
from supple.mitigators.states import State


class L2Regularizer(SquaredDistance):
    r"""Keep all parameters near zero: :math:`R(\theta) = \lVert \theta \rVert^2`.

    Args:
        network: a module or a :class:`Population`.
        strength: λ; the gradient is 2λθ. 1e-4 is the paper's choice on CIFAR and tiny-ImageNet. Some authors write λ/2.
        roles: None for a parameter leaves it out; the role itself makes no difference here.

    >>> import torch
    >>> network = torch.nn.Linear(2, 1)
    >>> (0 * network(torch.ones(1, 2))).sum().backward()  # a loss whose gradient is zero
    >>> L2Regularizer(network, strength=0.5).before_step()
    >>> bool((network.weight.grad == network.weight).all())
    True
    """

    def _deviation(self, name: str, parameter: Tensor, state: State) -> Tensor:
        return parameter
