"""Settings of megatron-alum attack."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from megatron_alum.config.custom_task import CustomTaskConfig


@dataclass(frozen=True)
class AttackConfig:
    """This attack"""

    model: tuple[str, ...]
    """fine-tuned Hugging Face folders to compare, such as OUTPUT/model of megatron-alum finetune"""
    output: str
    """folder of attack.jsonl and attack.png"""
    task: str | None = None
    """classification or multiple-choice task of the table, or custom; by default the first model's own"""
    data_dir: str = "."
    """folder of the task's official files, or the one above it"""
    split: str = "dev"
    """split to attack"""
    radii: tuple[float, ...] = (0.0, 0.01, 0.02, 0.05, 0.1)
    """L-infinity radii around the word embeddings; 0 is the clean accuracy"""
    num_steps: int = 10
    """gradient steps of each attack"""
    max_eval_samples: int = 500
    """examples to attack, a fixed sample of the split"""
    max_seq_length: int | None = None
    """tokens of the longest input; by default those of each model's training"""
    per_device_eval_batch_size: int = 32
    """examples of a batch"""
    seed: int = 0
    """of the random start"""
    word_attack: Literal["textfooler", "bae", "pwws", "deepwordbug"] | None = None
    """also replace words, by this recipe of the TextAttack library, which must be installed"""
    custom: CustomTaskConfig = field(default_factory=CustomTaskConfig)

    def __post_init__(self) -> None:
        """Raise ValueError for values that no attack can use."""
        file_of_split = {"dev": self.custom.validation_file, "test": self.custom.test_file}
        if self.task == "custom" and file_of_split.get(self.split) is None:
            raise ValueError(
                "--validation-file for --split dev, or --test-file for --split test, must be given with --task custom, "
                f"but is not for --split {self.split}."
            )
        if not self.model or not self.radii:
            raise ValueError("--model and --radii must have at least one value each, but one has none.")
        if min(self.radii) < 0:
            raise ValueError(f"--radii must be at least 0, but are {self.radii} instead.")
        for name in ("num_steps", "max_eval_samples", "max_seq_length", "per_device_eval_batch_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(
                    f"--{name.replace('_', '-')} must be at least 1, but is {getattr(self, name)} instead."
                )
