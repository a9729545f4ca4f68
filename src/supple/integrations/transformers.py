"""Methods and a monitor in a Transformers trainer."""

from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from supple.integrations import monitors
from supple.integrations.loading import load_all, states_of
from supple.integrations.monitors import Monitors
from supple.mitigators import Mitigator

FILE = "mitigators.pt"
"""The file in each checkpoint's folder with a list of the methods' states."""
MONITOR_FILE = "plasticity_monitor.pt"
"""The file in each checkpoint's folder with the monitor's state, or the states of several by name."""


class MitigatorCallback(TrainerCallback):
    """Attach methods to a ``Trainer``'s optimizer while it trains, and save their states in its checkpoints.

    A trainer takes one callback of this class: pass all methods to it.

    Args:
        mitigators: methods built on the trainer's model or on parts of it.
        resume_from: the checkpoint folder that you pass to ``train(resume_from_checkpoint=...)``, if it is not the
            trainer's own ``<output_dir>/checkpoint-<step>``; callbacks cannot see that argument.

    Raises:
        ValueError: when training starts, if the optimizer does not hold a method's parameters, the trainer has another
            callback of this class, or the checkpoint holds other methods' states.
        FileNotFoundError: when a resumed checkpoint was saved without this callback.
    """

    def __init__(self, *mitigators: Mitigator, resume_from: str | Path | None = None) -> None:
        self.mitigators, self.resume_from = mitigators, resume_from

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        _refuse_another(self, state, FILE, "pass all to one, as in MitigatorCallback(method, another)")
        for mitigator in self.mitigators:
            mitigator.detach().attach(kwargs["optimizer"])  # still attached if the last training was interrupted
        if state.global_step > 0:
            file = Path(self.resume_from or _checkpoint(args, state)) / FILE
            states = _saved(
                file,
                "the methods' state",
                "pass resume_from=folder to MitigatorCallback for a checkpoint elsewhere, or attach the methods "
                "without this callback",
            )
            if len(states) != len(self.mitigators):
                raise ValueError(
                    f"expected the states of {len(self.mitigators)} methods in {file}, got {len(states)}: build the "
                    "callback with the methods that were saved, in their order"
                )
            load_all(zip(self.mitigators, states, strict=True))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        states = states_of(self.mitigators)
        if state.is_world_process_zero:
            torch.save(states, _written(args, state) / FILE)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for mitigator in self.mitigators:
            mitigator.detach()


class PlasticityMonitorCallback(TrainerCallback):
    """Measure a network's plasticity while a ``Trainer`` trains, log it, and save the monitor's state in checkpoints.

    Each measurement goes through ``trainer.log`` at its ``global_step``, so that every integration in ``report_to``
    (TensorBoard, W&B, ...) and ``trainer.state.log_history`` get it, whatever ``logging_steps`` is. It measures after
    the optimizer's step, so attached methods have acted, whatever this callback's position in the list.

    A trainer takes one callback of this class: pass all monitors to it.

    Args:
        monitor: built on the trainer's model or on a part of it, and not attached. Or several by name:
            ``{"actor": monitor, "critic": another}`` logs ``actor/spectral_norm``, and so on.
        trainer: the trainer to log through, which callbacks cannot see otherwise:
            ``trainer.add_callback(PlasticityMonitorCallback(monitor, trainer))``.
        resume_from: the checkpoint folder that you pass to ``train(resume_from_checkpoint=...)``, if it is not the
            trainer's own ``<output_dir>/checkpoint-<step>``.

    Raises:
        TypeError: for anything else than a monitor or several by name.
        ValueError: when training starts, if the trainer has another callback of this class, or the checkpoint holds
            other monitors' states.
        RuntimeError: when training, if a monitor is attached to an optimizer.
        FileNotFoundError: when a resumed checkpoint was saved without this callback.
    """

    def __init__(self, monitor: Monitors, trainer: Trainer, *, resume_from: str | Path | None = None) -> None:
        monitors.by_name(monitor)
        self.monitor, self.trainer, self.resume_from = monitor, trainer, resume_from

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        remedy = 'pass all to one, as in PlasticityMonitorCallback({"actor": monitor, "critic": another}, trainer)'
        _refuse_another(self, state, MONITOR_FILE, remedy)
        if state.global_step > 0:
            file = Path(self.resume_from or _checkpoint(args, state)) / MONITOR_FILE
            remedy = (
                "pass resume_from=folder to PlasticityMonitorCallback for a checkpoint elsewhere, or write the file "
                "with torch.save(monitor.state_dict(), file) to begin measuring at this checkpoint"
            )
            monitors.load_state_dict(self.monitor, _saved(file, "the monitor's state", remedy))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # On every rank, so that none waits for another; integrations write on rank zero only.
        measurement = monitors.step(self.monitor)
        if measurement:
            should_log = control.should_log
            self.trainer.log(measurement)  # it adds the epoch
            control.should_log = should_log  # the trainer's log of the loss is still due; trainer.log cleared it

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            torch.save(monitors.state_dict(self.monitor), _written(args, state) / MONITOR_FILE)


def _refuse_another(callback: TrainerCallback, state: TrainerState, file: str, remedy: str) -> None:
    """Refuse a second callback that would write the same file.

    Callbacks cannot see each other, but all get the state of this training.
    """
    if vars(state).setdefault(file, id(callback)) != id(callback):
        raise ValueError(
            f"expected one {type(callback).__name__}, because a checkpoint has one {file}, got another: {remedy}"
        )


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def _written(args: TrainingArguments, state: TrainerState) -> Path:
    """The checkpoint folder that the trainer has just written; in a hyperparameter trial its parent is unknown."""
    folder = _checkpoint(args, state)
    if state.trial_params is None:
        return folder
    files = Path(str(args.output_dir)).rglob(f"{folder.name}/{TRAINER_STATE_NAME}")
    return max(files, key=lambda file: file.stat().st_mtime_ns).parent


def _saved(file: Path, content: str, remedy: str) -> Any:
    if not file.exists():
        raise FileNotFoundError(f"expected {content} in {file}, got no such file: {remedy}")
    return torch.load(file, map_location="cpu")
