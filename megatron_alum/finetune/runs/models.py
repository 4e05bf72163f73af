"""A Hugging Face encoder with the head of a task kind, and its tokenizer, from local folders.

Nothing is downloaded: the folder must hold config.json, weights and tokenizer files. Weights are float32 whatever the
folder holds: at the paper's learning rates most updates of a 16-bit weight, and a perturbation of 1e-5, would be
rounded away. The task layer's dropout is set by the task; the longest input is limited by position table and tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import normalizers, pre_tokenizers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from megatron_alum.checkpoint.folder import contents_of
from megatron_alum.convert.foreign import has_weights, instead_of_a_model
from megatron_alum.data.tokenizers.bare_vocabulary import has_tokenizer, open_tokenizer
from megatron_alum.finetune.benchmarks.class_names import class_names, order_of
from megatron_alum.finetune.benchmarks.tasks import Task
from megatron_alum.finetune.methods.divergence import PAD_LOGIT, Kind
from megatron_alum.finetune.runs.labels import reorder_classes

HEADS: dict[Kind, Any] = {
    "classification": AutoModelForSequenceClassification,
    "regression": AutoModelForSequenceClassification,
    "spans": AutoModelForQuestionAnswering,
    "choice": AutoModelForMultipleChoice,
    "tags": AutoModelForTokenClassification,
}
UNSET_LENGTH = 1_000_000  # tokenizers without a limit report about 1e30
# In these models the first real token has position pad + 1, so the table serves fewer tokens than it has rows.
POSITIONS_AFTER_PAD = (
    *("roberta", "xlm-roberta", "xlm-roberta-xl", "roberta-prelayernorm", "camembert", "data2vec-text", "xmod"),
    *("ibert", "longformer", "luke", "mpnet", "esm"),
)


def build_model(folder: str, task: Task, tags: tuple[str, ...] = ()) -> PreTrainedModel:
    """The encoder with a head for `task`: the folder's own if it has the task's classes (put in the task's order), else
    a fresh one; `tags` name the classes of a tagging task.

    Raises: ValueError for a folder that is not a Hugging Face model.
    """
    config = AutoConfig.from_pretrained(checked_folder(folder, "--model"), local_files_only=True)
    names = tags if task.kind == "tags" else task.labels
    order, is_fresh = _order_in(config, task, names), has_other_head(config, task, names)
    model = _with_head(folder, task, _config_of(config, task, names if order is None else _in_order(names, order)))
    if is_fresh:
        fresh: PreTrainedModel = HEADS[task.kind].from_config(model.config, dtype=torch.float32)
        fresh.base_model.load_state_dict(model.base_model.state_dict())
        model = fresh
    elif order is not None:
        reorder_classes(model, order, names)
    for module in task_layer_dropouts(model):
        module.p = task.dropout
    if task.kind == "choice":
        mask_missing_candidates(model)
    return model


def mask_missing_candidates(model: PreTrainedModel) -> None:
    """Allow different numbers of candidates in the rows of a batch: those of one token (features.py) are never
    chosen."""

    def masked(_model: nn.Module, _inputs: Any, options: dict[str, Any], outputs: Any) -> Any:
        real = options["attention_mask"].sum(-1) > 1  # [B, choices]
        outputs["logits"] = outputs["logits"].masked_fill(~real, PAD_LOGIT)
        if options.get("labels") is not None:
            outputs["loss"] = nn.functional.cross_entropy(outputs["logits"], options["labels"])
        return outputs

    model.register_forward_hook(masked, with_kwargs=True)


def _in_order(names: Sequence[str], order: Sequence[int]) -> list[str]:
    """The task's names in the order in which the folder has them."""
    return [name for _, name in sorted(zip(order, names, strict=True))]


def _config_of(config: Any, task: Task, names: Sequence[str]) -> Any:
    """The configuration with the task's classes and dropout."""
    if task.kind == "regression":
        config.num_labels, config.problem_type = 1, "regression"
    elif names:
        config.id2label, config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
        config.problem_type = None
    elif task.kind == "spans":
        config.num_labels = 2  # a start and an end
    if hasattr(config, "classifier_dropout"):
        config.classifier_dropout = task.dropout
    return config


def _with_head(folder: str, task: Task, config: Any) -> PreTrainedModel:
    """The folder's weights in the task's class; parts of another size are initialised afresh."""
    model: PreTrainedModel = HEADS[task.kind].from_pretrained(
        folder, config=config, dtype=torch.float32, local_files_only=True, ignore_mismatched_sizes=True
    )
    return model


def _has_this_head(config: Any, task: Task) -> bool:
    """Whether the folder's architecture ends in the head of the task's kind."""
    architecture = (config.architectures or [""])[0]
    return bool(architecture.endswith(_ending(task)))


def _ending(task: Task) -> str:
    """How a class of the task's kind ends: ForSequenceClassification, ..."""
    name: str = HEADS[task.kind].__name__.removeprefix("AutoModel")
    return name


def _order_in(config: Any, task: Task, names: Sequence[str]) -> list[int] | None:
    """The folder's class id for each of the task's classes; None if it has other classes, or none."""
    if not _has_this_head(config, task) or not names:
        return None
    return order_of(class_names(config), names, task.synonyms)


def has_other_head(config: Any, task: Task, names: Sequence[str]) -> bool:
    """Whether a folder's head is of no use for `task` with the classes `names`: another kind, or other classes."""
    architecture = (config.architectures or [""])[0]
    if not _has_this_head(config, task):
        return architecture.endswith(tuple(head.__name__.removeprefix("AutoModel") for head in HEADS.values()))
    if task.kind == "regression":
        return bool(config.num_labels != 1)
    return bool(names) and _order_in(config, task, names) is None


def head_of(folder: str) -> tuple[Kind | None, tuple[str, ...]]:
    """(kind, class names) of a folder's own head, (None, ()) without one; classes without names are 0, 1."""
    config = AutoConfig.from_pretrained(checked_folder(folder, "--model"), local_files_only=True)
    architecture = (config.architectures or [""])[0]
    kinds = [kind for kind, head in HEADS.items() if architecture.endswith(head.__name__.removeprefix("AutoModel"))]
    if not kinds or kinds[0] != "classification":
        return (kinds[0] if kinds else None), ()
    if config.num_labels == 1 or config.problem_type == "regression":
        return "regression", ()
    places = [str(index) for index in range(config.num_labels)]
    names = class_names(config)
    return "classification", tuple(places if names == [f"LABEL_{place}" for place in places] else names)


def head_note(folder: str, task: Task, tags: tuple[str, ...] = ()) -> str | None:
    """One line about what happens to a folder's own head; None if there is nothing to report."""
    config = AutoConfig.from_pretrained(checked_folder(folder, "--model"), local_files_only=True)
    names = tags if task.kind == "tags" else task.labels
    order = _order_in(config, task, names)
    if has_other_head(config, task, names):
        classes = f" of {config.num_labels} classes ({', '.join(class_names(config)[:4])})"
        return f"{folder} has {config.architectures[0]}{classes}: {task.name} gets a fresh head"
    if order is not None and order != sorted(order):
        return f"{folder} has its classes as {', '.join(class_names(config))}: put in the order {', '.join(names)}"
    return None


def task_layer_dropouts(model: PreTrainedModel) -> list[nn.Dropout]:
    """The dropouts before the task's classifier, which half of the architectures do not let a configuration name.

    DeBERTa's pooler counts as part of the encoder: its dropout is kept.
    """
    of_encoder = set(model.base_model.modules())
    return [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Dropout) and module not in of_encoder and "pooler" not in name
    ]


def check_finetuned(folder: str, task: Task) -> None:
    """Read from config.json whether the model of a folder solves `task`, with the task's classes in any order.

    Raises: ValueError when it does not.
    """
    config = AutoConfig.from_pretrained(checked_folder(folder, "--model"), local_files_only=True)
    if not _has_this_head(config, task):
        architecture = (config.architectures or ["a model without a head"])[0]
        raise ValueError(
            f"--model must end in {_ending(task)} for the task {task.name}, but {folder} holds {architecture} instead. "
            "Fine-tune it with megatron-alum finetune."
        )
    wanted = 1 if task.kind == "regression" else len(task.labels)
    if task.kind in ("classification", "regression") and config.num_labels != wanted:
        raise ValueError(
            f"--model must have the {wanted} classes of {task.name}, but {folder} has {config.num_labels}."
        )
    if task.kind == "classification" and _order_in(config, task, task.labels) is None:
        raise ValueError(
            f"--model must have the classes {', '.join(task.labels)} of {task.name}, but {folder} has "
            f"{', '.join(class_names(config))}. Name them in id2label of its config.json."
        )


def load_finetuned(folder: str, task: Task) -> PreTrainedModel:
    """The model of a folder with its trained head for `task`, its classes in the task's order.

    Raises: ValueError for another head or other classes, or where weights are missing.
    """
    check_finetuned(folder, task)
    model, info = HEADS[task.kind].from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"]))
        raise ValueError(f"--model must hold the weights of encoder and head, but {folder} lacks {missing}.")
    loaded: PreTrainedModel = model
    order = _order_in(loaded.config, task, task.labels)
    if order is not None:
        reorder_classes(loaded, order, task.labels)
    if task.kind == "choice":
        mask_missing_candidates(loaded)
    return loaded.eval()


def load_tokenizer(folder: str, kind: Kind | None = None) -> PreTrainedTokenizerBase:
    """The fast tokenizer of a folder, a bare vocabulary's too; for `kind` tags, one that encodes each word as it
    appears inside a sentence.

    Raises: ValueError for a folder without one, or whose tokenizer has almost no words.
    """
    tokenizer = open_tokenizer(Path(checked_folder(folder, "--tokenizer")))
    if not tokenizer.is_fast or len(tokenizer) < 16:
        raise ValueError(f"{folder} must hold a fast tokenizer with a vocabulary, but has {len(tokenizer)} tokens.")
    if kind == "tags":
        _expect_words(tokenizer)
    opened: PreTrainedTokenizerBase = tokenizer
    return opened


def check_vocabulary(folder: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises: ValueError for a tokenizer with ids beyond the model's word table, or whose pads the model would count as
    tokens.
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    rows = getattr(config, "vocab_size", None)
    if rows is not None and len(tokenizer) > rows:
        raise ValueError(
            f"the tokenizer must have at most the {rows} words of {folder}, but has {len(tokenizer)}. Use --tokenizer."
        )
    if config.model_type in POSITIONS_AFTER_PAD and tokenizer.pad_token_id != config.pad_token_id:
        raise ValueError(
            f"the tokenizer must have the padding id {config.pad_token_id} of {folder}, after which its positions "
            f"begin, but has {tokenizer.pad_token_id}. Use --tokenizer."
        )


def _expect_words(tokenizer: Any) -> None:
    """Byte-level BPE marks a word by the space before it, which words given one by one lack: add it."""
    backend = tokenizer.backend_tokenizer
    steps = json.loads(backend.to_str())["pre_tokenizer"] or {}
    if steps.get("type") == "ByteLevel":
        options = {name: steps[name] for name in ("trim_offsets", "use_regex")}
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, **options)
        tokenizer.add_prefix_space = tokenizer.init_kwargs["add_prefix_space"] = True  # kept when it is saved
    elif any(step["type"] == "ByteLevel" for step in steps.get("pretokenizers", [])):
        prepend = normalizers.Prepend(" ")  # the word is cut before its bytes are mapped: the space must come first
        backend.normalizer = normalizers.Sequence([*filter(None, [backend.normalizer]), prepend])


def longest_input(folder: str, tokenizer: PreTrainedTokenizerBase, wanted: int) -> int:
    """`wanted` tokens, or fewer if the model's positions or the tokenizer allow only that."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    positions = getattr(config, "max_position_embeddings", wanted)
    if config.model_type in POSITIONS_AFTER_PAD:
        positions -= config.pad_token_id + 1
    limit = tokenizer.model_max_length if tokenizer.model_max_length < UNSET_LENGTH else positions
    return min(wanted, positions, limit)


def checked_folder(folder: str, flag: str) -> str:
    """`folder`, if it holds a config.json with weights (--model), or a tokenizer (--tokenizer).

    Raises: ValueError otherwise; the network is never used.
    """
    path = Path(folder)
    if flag == "--tokenizer" and not has_tokenizer(path):
        wanted = "a local Hugging Face folder with tokenizer files"
        raise ValueError(f"--tokenizer must be {wanted}, but {folder} {contents_of(path)}.")
    if flag == "--model" and not ((path / "config.json").is_file() and has_weights(path)):
        wanted = "a local Hugging Face folder with config.json and weights"
        plain = f"--model must be {wanted}, but {folder} {contents_of(path)}."
        reason = instead_of_a_model(path)
        if (path / "model" / "config.json").is_file():
            reason = f"{folder} holds the runs of a fine-tuning. Give {path / 'model'}."
        raise ValueError(plain if reason is None else f"--model: {reason}")
    return folder
