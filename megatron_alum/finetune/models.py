"""A Hugging Face encoder with the head of a task kind, and its tokenizer, from local folders.

Nothing is fetched: the folder must hold config.json, weights and tokenizer files. The task layer's dropout is the
task's; the longest input is what position table and tokenizer allow.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from megatron_alum.finetune.divergence import Kind
from megatron_alum.finetune.tasks import Task

HEADS: dict[Kind, Any] = {
    "classification": AutoModelForSequenceClassification,
    "regression": AutoModelForSequenceClassification,
    "spans": AutoModelForQuestionAnswering,
    "choice": AutoModelForMultipleChoice,
    "tags": AutoModelForTokenClassification,
}
UNSET_LENGTH = 1_000_000  # tokenizers without a limit report about 1e30


def build_model(folder: str, task: Task, tags: tuple[str, ...] = ()) -> PreTrainedModel:
    """The encoder with a fresh head for `task`; `tags` name the classes of a tagging task.

    Raises: ValueError for a folder that is no Hugging Face model.
    """
    config = AutoConfig.from_pretrained(checked_folder(folder, "--model"), local_files_only=True)
    names = tags if task.kind == "tags" else task.labels
    if task.kind == "regression":
        config.num_labels, config.problem_type = 1, "regression"
    elif names:
        config.id2label, config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
    if hasattr(config, "classifier_dropout"):
        config.classifier_dropout = task.dropout
    return HEADS[task.kind].from_pretrained(folder, config=config, local_files_only=True)


def load_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """The fast tokenizer of a folder.

    Raises: ValueError for a folder without one, or whose tokenizer knows almost no words.
    """
    tokenizer = AutoTokenizer.from_pretrained(checked_folder(folder, "--tokenizer"), local_files_only=True)
    if not tokenizer.is_fast or len(tokenizer) < 16:
        raise ValueError(f"{folder} must hold a fast tokenizer with a vocabulary, but has {len(tokenizer)} tokens.")
    return tokenizer


def longest_input(folder: str, tokenizer: PreTrainedTokenizerBase, wanted: int) -> int:
    """`wanted` tokens, or fewer where the model's positions or the tokenizer end earlier."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    positions = getattr(config, "max_position_embeddings", wanted)
    if config.model_type in ("roberta", "xlm-roberta", "camembert"):
        positions -= config.pad_token_id + 1  # the first real token has position pad + 1
    limit = tokenizer.model_max_length if tokenizer.model_max_length < UNSET_LENGTH else positions
    return min(wanted, positions, limit)


def checked_folder(folder: str, flag: str) -> str:
    """`folder`, if it holds a config.json or tokenizer files.

    Raises: ValueError otherwise; nothing is ever looked up on the network.
    """
    names = ("config.json", "tokenizer.json", "tokenizer_config.json")
    if not any((Path(folder) / name).is_file() for name in names):
        raise ValueError(f"{flag} must be a local Hugging Face folder with config.json, but {folder} is not.")
    return folder
