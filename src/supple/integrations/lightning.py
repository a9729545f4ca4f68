"""Methods in a Lightning trainer."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from supple.mitigators import Mitigator
from supple.mitigators.optimizers import held_by


class MitigatorCallback(Callback):
    """Attach methods to a trainer's optimizers while it fits, and save their states in its checkpoints.

    Instead, you can call ``attach`` in ``configure_optimizers``, but then a resumed run starts with a new state.

    Args:
        mitigators: methods built on the module to fit or on parts of it. Each acts on every optimizer that holds some
            of its parameters.

    Raises:
        ValueError: when fitting starts and no optimizer holds a method's parameters, or if a checkpoint holds other
            methods' states.
    """

    def __init__(self, *mitigators: Mitigator) -> None:
        self.mitigators = mitigators

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for mitigator in self.mitigators:
            mitigator.detach()  # from a fit that was interrupted
            parameters = {id(parameter) for parameter in mitigator.parameters.values()}
            holding = [optimizer for optimizer in trainer.optimizers if held_by(optimizer) & parameters]
            for optimizer in holding or trainer.optimizers[:1]:
                mitigator.attach(optimizer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for mitigator in self.mitigators:
            mitigator.detach()

    def state_dict(self) -> dict[str, Any]:
        return {"mitigators": [mitigator.state_dict() for mitigator in self.mitigators]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        states = state_dict["mitigators"]
        if len(states) != len(self.mitigators):
            raise ValueError(
                f"expected the states of {len(self.mitigators)} methods in the checkpoint, got {len(states)}: build "
                "the callback with the methods that were saved, in their order"
            )
        for mitigator, state in zip(self.mitigators, states, strict=True):
            mitigator.load_state_dict(state)
