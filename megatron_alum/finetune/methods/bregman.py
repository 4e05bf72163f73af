"""The moving average of the parameters that SMART's Bregman term compares with (Jiang et al. 2020, arXiv 1911.03437).

The average is updated after every optimizer step, saved in the Trainer's checkpoint and read back on resume. It is
saved before trainer_state.json, whose presence makes a checkpoint complete, and gets its name only when whole: a
complete checkpoint has a whole average. To run it, its tensors are put in the model's parameters for the length of a
`with` block: no second module, no second set of hooks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

FILE_NAME = "bregman_average.safetensors"


class MovingAverage(TrainerCallback):
    """average <- momentum * average + (1 - momentum) * parameters, per optimizer step."""

    def __init__(self, momentum: float) -> None:
        self.momentum = momentum
        self.average: dict[str, Tensor] = {}
        self.resume_folder: Path | None = None  # of the checkpoint, where it is not the output folder's own

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start from the model's parameters, or from the checkpoint the run resumes.

        Raises: ValueError when that checkpoint has no whole average.
        """
        parameters = trained(kwargs["model"])
        self.average = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        if state.global_step:
            loaded = _read((self.resume_folder or checkpoint_folder(args, state)) / FILE_NAME, self.average)
            self.average = {name: loaded[name].to(value.device) for name, value in self.average.items()}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the average towards the parameters."""
        with torch.no_grad():
            for name, parameter in trained(kwargs["model"]).items():
                self.average[name].lerp_(parameter.detach(), 1 - self.momentum)

    def save(self, folder: Path) -> None:
        """Write the average into a checkpoint's folder; the file appears whole or not at all."""
        partial = folder / f"{FILE_NAME}.partial"
        save_file({name: value.contiguous() for name, value in self.average.items()}, partial)
        os.replace(partial, folder / FILE_NAME)

    @contextmanager
    def swapped_into(self, model: nn.Module) -> Iterator[None]:
        """The model holds the average in the body."""
        parameters = trained(model)
        current = {name: parameter.data for name, parameter in parameters.items()}
        for name, parameter in parameters.items():
            parameter.data = self.average[name]
        try:
            yield
        finally:
            for name, parameter in parameters.items():
                parameter.data = current[name]


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """{name: parameter} of what is trained, without the prefixes that wrappers add."""
    module = getattr(model, "module", model)
    module = getattr(module, "_orig_mod", module)
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def _read(path: Path, like: dict[str, Tensor]) -> dict[str, Tensor]:
    """The average in a file, with the names and shapes of `like`."""
    try:
        loaded = load_file(path)
        wrong = [name for name, value in like.items() if name not in loaded or loaded[name].shape != value.shape]
        reason = f"lacks {wrong[0]} of this model" if wrong else ""
    except FileNotFoundError:
        reason = "is missing"
    except (OSError, SafetensorError) as error:
        reason = f"cannot be read ({error})"
    if reason:
        raise ValueError(
            f"{path} must hold the moving average of --bregman-weight to resume, but {reason}. "
            "Delete the checkpoint's folder to go on from an older one or from the start."
        )
    return loaded


def checkpoint_folder(args: TrainingArguments, state: TrainerState) -> Path:
    """The Trainer's checkpoint folder of the current step."""
    return Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
