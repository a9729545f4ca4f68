"""Two methods of your own in one file: one acts after each step, the other on the gradients before it.

    supple sweep random-label-digits --methods none own_method:Shrink --strengths 1e-5 1e-4
    supple run random-label-digits --method own_method:TowardsAverage --option decay 0.99

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
                # In place. In a population (many networks, stacked) dimension 0 is the network, and strengths differ.
                parameter.mul_(1 - per_member(strength, parameter.ndim))


class TowardsAverage(supple.Mitigator):
    """A pull towards each parameter's running average, which is the method's state."""

    def __init__(self, network, strength: Strength = 1e-3, *, decay: float = 0.999, roles=None) -> None:
        super().__init__(network, strength, roles=roles)
        self.decay = decay  # an option: a keyword argument
        # Saved and loaded by state_dict().
        self.state = {name: {"average": parameter.detach().clone()} for name, parameter in self.parameters.items()}

    def add_gradients(self, parameters: Tensors, gradients: Tensors, state: State, strength: Strength) -> None:
        for name, gradient in gradients.items():
            average = state[name]["average"].lerp_(parameters[name], 1 - self.decay)
            gradient.add_(per_member(strength, gradient.ndim) * (parameters[name] - average))
