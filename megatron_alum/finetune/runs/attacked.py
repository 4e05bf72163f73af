"""What `megatron-alum attack` does with each model: a split attacked at every radius, as rows of results."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from tqdm import tqdm

from megatron_alum.config.finetune import AttackConfig
from megatron_alum.finetune.benchmarks.features import Collator
from megatron_alum.finetune.benchmarks.loading import Example
from megatron_alum.finetune.benchmarks.tasks import Task
from megatron_alum.finetune.runs.attack import pgd_accuracy, word_attack
from megatron_alum.finetune.runs.evaluation import encoder_of
from megatron_alum.finetune.runs.models import load_finetuned, load_tokenizer
from megatron_alum.finetune.runs.prepare import sampled_split
from megatron_alum.finetune.runs.stored import task_of


def attacked_task(config: AttackConfig) -> Task:
    """The table's row, or one made of the flags of --task custom and of what the first model says of itself.

    Raises: ValueError for a task without classes.
    """
    task = task_of(config.model[0], config.task, config.custom)
    if task.name == "custom" and task.kind == "regression":
        raise ValueError(f"--labels must name two or more classes of --task custom, but names {len(task.labels)}.")
    if task.kind not in ("classification", "choice"):
        raise ValueError(f"--task must be a classification or multiple-choice task, but {task.name} is {task.kind}.")
    return task


def labelled_examples(config: AttackConfig, task: Task) -> list[Example]:
    """The examples to attack.

    Raises: ValueError for a split without labels.
    """
    examples = sampled_split(task, config.data_dir, config.split, config.max_eval_samples)
    if any(example["label"] is None for example in examples):
        raise ValueError(f"--split must have labels, but {config.split} of {task.name} has none.")
    return examples


def attack_model(config: AttackConfig, task: Task, examples: list[Example], folder: str) -> Iterator[dict[str, Any]]:
    """The result rows of one model, each as it is found; the model runs on the GPU if there is one."""
    tokenizer = load_tokenizer(folder)
    model = load_finetuned(folder, task).to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
    encoder = encoder_of(folder, task, tokenizer, config.max_seq_length)
    features, size = encoder.encode(examples), config.per_device_eval_batch_size
    collate = Collator(tokenizer, task.kind)
    batches = [collate(features[start : start + size]) for start in range(0, len(features), size)]
    common = {"task": task.name, "split": config.split, "model": folder, "n": len(examples)}
    for radius in tqdm(config.radii, desc=f"{folder}: radius"):
        accuracy, _ = pgd_accuracy(model, batches, radius, num_steps=config.num_steps, seed=config.seed)
        yield {**common, "attack": "pgd", "radius": radius, "num_steps": config.num_steps, "accuracy": accuracy}
    if config.word_attack:
        result = word_attack(model, tokenizer, task, examples, config.word_attack)
        yield {**common, "attack": config.word_attack, **result}
