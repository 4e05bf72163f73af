"""The moving average of the parameters that SMART's Bregman term compares with (Jiang et al. 2020, arXiv 1911.03437).

The average is updated after every optimizer step, saved beside the Trainer's checkpoint and read back on resume. To run
it, its tensors are put in the model's parameters for the length of a `with` block: no second module, no second set of
hooks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
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

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start from the model's parameters, or from the checkpoint the run resumes."""
        parameters = trained(kwargs["model"])
        self.average = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        saved = Path(checkpoint_folder(args, state)) / FILE_NAME
        if state.global_step and saved.is_file():
            loaded = load_file(saved)
            self.average = {name: loaded[name].to(value.device) for name, value in self.average.items()}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the average towards the parameters."""
        with torch.no_grad():
            for name, parameter in trained(kwargs["model"]).items():
                self.average[name].lerp_(parameter.detach(), 1 - self.momentum)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the average into the checkpoint folder, on the main process."""
        if state.is_world_process_zero:
            save_file({n: v.contiguous() for n, v in self.average.items()}, checkpoint_folder(args, state) / FILE_NAME)

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


def checkpoint_folder(args: TrainingArguments, state: TrainerState) -> Path:
    """The Trainer's checkpoint folder of the current step."""
    return Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
