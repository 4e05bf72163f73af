"""What a grid of runs shares: the task's row, the tokenizer, and every split read, subsampled and encoded once."""

from __future__ import annotations

import random

from megatron_alum.config.finetune import FinetuneConfig, FinetuneDataConfig
from megatron_alum.finetune.batching import longest_first
from megatron_alum.finetune.features import Encoder
from megatron_alum.finetune.loading import Example, has_split, load_split, tag_names
from megatron_alum.finetune.models import check_vocabulary, checked_folder, load_tokenizer, longest_input
from megatron_alum.finetune.runs import Prepared, Split
from megatron_alum.finetune.tasks import Task, custom_task, task_named

SUBSET_SEED = 0  # one subset for all runs of a comparison


def prepare(config: FinetuneConfig) -> Prepared:
    """Read and encode the training set and every evaluation split whose files are there.

    Raises: ValueError for missing or malformed files, naming them.
    """
    data = config.data
    task = find_task(data)
    checked_folder(data.model, "--model")
    tokenizer = load_tokenizer(data.tokenizer or data.model, task.kind)
    check_vocabulary(data.model, tokenizer)
    train = subset(load_split(task, data.data_dir, "train"), data.max_train_samples)
    splits = {name: _eval_split(task, data, name) for name in evaluated_splits(task, data.data_dir)}
    if not train or not splits["dev"]:
        raise ValueError(f"--data-dir must hold examples of {task.name}, but a file of train or dev is empty.")
    tags = tag_names([*train, *splits["dev"]]) if task.kind == "tags" else ()
    length = longest_input(data.model, tokenizer, data.max_seq_length)
    stride = min(data.doc_stride, length // 4)
    encoder = Encoder(tokenizer, task.kind, length, stride, tags, max_question_tokens=data.max_query_length)
    encoded = [Split(name, examples, longest_first(encoder.encode(examples))) for name, examples in splits.items()]
    return Prepared(task, tokenizer, encoder.encode(train), encoded, tags)


def find_task(data: FinetuneDataConfig) -> Task:
    """The table's row, or one made of the flags of --task custom."""
    return custom_task(data.custom, data.train_file) if data.task == "custom" else task_named(data.task)


def evaluated_splits(task: Task, data_dir: str) -> list[str]:
    """dev first, then every other split whose files exist."""
    others = [name for name in task.files if name not in ("train", "dev") and has_split(task, data_dir, name)]
    return ["dev", *others]


def subset(examples: list[Example], limit: int | None) -> list[Example]:
    """`limit` examples of a fixed shuffle, or all in their order."""
    if limit is None or limit >= len(examples):
        return examples
    return random.Random(SUBSET_SEED).sample(examples, limit)


def _eval_split(task: Task, data: FinetuneDataConfig, name: str) -> list[Example]:
    """The first so many examples; whole groups of Adversarial SQuAD cannot be guaranteed then."""
    return load_split(task, data.data_dir, name)[: data.max_eval_samples]
