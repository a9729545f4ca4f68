"""Methods in a Transformers trainer."""

from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from supple.mitigators import Mitigator

FILE = "mitigators.pt"
"""The file in each checkpoint's folder with a list of the methods' states."""


class MitigatorCallback(TrainerCallback):
    """Attach methods to a ``Trainer``'s optimizer while it trains, and save their states in its checkpoints.

    Args:
        mitigators: methods built on the trainer's model or on parts of it.
        resume_from: the checkpoint folder that you pass to ``train(resume_from_checkpoint=...)``, if it is not the
            trainer's own ``<output_dir>/checkpoint-<step>``: the trainer does not tell callbacks.

    Raises:
        ValueError: when training starts and the optimizer does not hold a method's parameters.
        FileNotFoundError: when a resumed checkpoint was saved without this callback.
    """

    def __init__(self, *mitigators: Mitigator, resume_from: str | Path | None = None) -> None:
        self.mitigators, self.resume_from = mitigators, resume_from

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for mitigator in self.mitigators:
            mitigator.detach().attach(kwargs["optimizer"])  # still attached if the last training was interrupted
        if state.global_step > 0:
            file = Path(self.resume_from or _checkpoint(args, state)) / FILE
            if not file.exists():
                raise FileNotFoundError(
                    f"expected the methods' state in {file}, got no such file: say MitigatorCallback(..., "
                    "resume_from=folder) for a checkpoint elsewhere, or attach the methods without this callback"
                )
            states = torch.load(file, map_location="cpu")
            if len(states) != len(self.mitigators):
                raise ValueError(
                    f"expected the states of {len(self.mitigators)} methods in {file}, got {len(states)}: build the "
                    "callback with the methods that were saved, in their order"
                )
            for mitigator, remembered in zip(self.mitigators, states, strict=True):
                mitigator.load_state_dict(remembered)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            torch.save([mitigator.state_dict() for mitigator in self.mitigators], _checkpoint(args, state) / FILE)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for mitigator in self.mitigators:
            mitigator.detach()


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
