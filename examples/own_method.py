"""A method of your own in one file: shrink every weight a little after each step.

    supple sweep random-label-digits --methods none own_method:Shrink --strengths 1e-5 1e-4

The folder that holds this file must be on PYTHONPATH.
"""

import supple
from supple.mitigators import State, Strength, Tensors, Update, per_member


class Shrink(supple.Mitigator):
    """Weights a little smaller after each step."""

    def __init__(self, network, strength: Strength = 1e-4, *, roles=None) -> None:
        super().__init__(network, strength, roles=roles)

    def change_parameters(self, parameters: Tensors, state: State, strength: Strength, update: Update) -> None:
        for name, parameter in parameters.items():
            if self.roles[name].kind == "matrix":
                # In place; a population's strengths differ by member, the first dimension.
                parameter.mul_(1 - per_member(strength, parameter.ndim))
