"""Methods and a monitor in a Lightning trainer."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from supple.integrations import monitors
from supple.integrations.loading import load_all, states_of
from supple.integrations.monitors import Monitors
from supple.mitigators import Mitigator
from supple.mitigators.optimizers import held_by


class MitigatorCallback(Callback):
    """Attach methods to a trainer's optimizers while it fits, and save their states in its checkpoints.

    Instead, you can call ``attach`` in ``configure_optimizers``, but then a resumed run starts with a new state.

    A trainer takes one callback of this class: pass all methods to it.

    Args:
        mitigators: methods built on the module to fit or on parts of it. Each acts on every optimizer that holds some
            of its parameters.

    Raises:
        ValueError: when fitting starts, if no optimizer holds a method's parameters or the trainer has another callback
            of this class, or if a checkpoint holds other methods' states.
    """

    def __init__(self, *mitigators: Mitigator) -> None:
        self.mitigators = mitigators

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        _refuse_another(self, trainer, "pass all to one, as in MitigatorCallback(method, another)")

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
        return {"mitigators": states_of(self.mitigators)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        states = state_dict["mitigators"]
        if len(states) != len(self.mitigators):
            raise ValueError(
                f"expected the states of {len(self.mitigators)} methods in the checkpoint, got {len(states)}: build "
                "the callback with the methods that were saved, in their order"
            )
        load_all(zip(self.mitigators, states, strict=True))


class PlasticityMonitorCallback(Callback):
    """Measure a network's plasticity while a trainer fits, log it, and save the monitor's state in the checkpoints.

    It counts the batches after which an optimizer steps: one with gradient accumulation or several optimizers counts
    once. Each measurement goes to all of ``trainer.loggers`` from rank zero, whatever ``log_every_n_steps`` is, at the
    step at which Lightning logs the same batch's metrics. It measures after all optimizers' steps, so attached methods
    have acted, whatever this callback's position in the list.

    A trainer takes one callback of this class: pass all monitors to it.

    Args:
        monitor: built on the module to fit or on a part of it, and not attached. Or several by name:
            ``PlasticityMonitorCallback({"actor": monitor, "critic": another})`` logs ``actor/spectral_norm``, and so
            on.

    Raises:
        TypeError: for anything else.
        ValueError: when fitting starts, if the trainer has another callback of this class, or if a checkpoint holds
            other monitors' states.
        RuntimeError: when fitting, if a monitor is attached to an optimizer.
    """

    def __init__(self, monitor: Monitors) -> None:
        monitors.by_name(monitor)
        self.monitor = monitor
        self._global_step = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        _refuse_another(
            self, trainer, 'pass all to one, as in PlasticityMonitorCallback({"actor": monitor, "critic": another})'
        )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._global_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._global_step:
            return
        # On every rank, so that none waits for another; loggers write on rank zero only.
        measurement = monitors.step(self.monitor)
        if measurement:
            for logger in trainer.loggers:
                # Lightning's own step for loggers: global_step counts every optimizer's steps.
                logger.log_metrics(measurement, step=trainer.fit_loop.epoch_loop._batches_that_stepped)

    def state_dict(self) -> dict[str, Any]:
        return monitors.state_dict(self.monitor)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        monitors.load_state_dict(self.monitor, state_dict)


def _refuse_another(callback: Callback, trainer: Trainer, remedy: str) -> None:
    """Lightning refuses another itself, but only among the callbacks that are passed to ``Trainer(...)``."""
    count = sum(other.state_key == callback.state_key for other in trainer.callbacks)  # type: ignore[attr-defined]  # Trainer sets it
    if count > 1:
        raise ValueError(
            f"expected one {type(callback).__name__}, because a checkpoint has one place for its state, got {count}: "
            f"{remedy}"
        )
