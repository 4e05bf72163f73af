"""Loads a Hugging Face folder into a network on this rank, whatever the parallel layout.

    config = model_config_from_hf(hf_dir)                                the network's shape
    model = build_model(config, vocab_size=hf_vocab_size(hf_dir), groups=groups)
    load_hf_into_model(hf_dir, model)                                    this rank's part of every tensor

Every rank reads the folder itself, one tensor at a time, and keeps its own rows; there is no communication. Heads that
the folder lacks keep the fresh weights from `build_model`, and a warning names them. `--init-from` may also name a
checkpoint of this project (a finished run, or what from-hf wrote): `model_flags_from_hf` and `load_hf_into_model`
take both.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from megatron_alum.checkpoint.folder import COMPLETE_FILE, find_checkpoint, list_iterations, read_run_config
from megatron_alum.config.model import ModelConfig
from megatron_alum.convert.checkpoint_source import (
    HF_CONFIG_KEY,
    CheckpointWeights,
    model_config_of,
    read_checkpoint_source,
)
from megatron_alum.convert.hf_config import model_config_from_dict, read_hf_config
from megatron_alum.convert.hf_folder import HfFolder, resolve_model_folder
from megatron_alum.convert.keys import Row
from megatron_alum.convert.tensors import copy_vocabulary_shard, shard
from megatron_alum.convert.translate import list_names

if TYPE_CHECKING:
    from megatron_alum.models.bert import SplitBert

# Fields of ModelConfig that no weight depends on: those of the run, and those that a folder suggests and a run may
# change.
_RUN_OPTIONS = ("model_size", "seq_length", "make_vocab_size_divisible_by")
_TRAINING_OPTIONS = ("hidden_dropout", "attention_dropout", "init_method_std")
PROBE = "Word \u00c9t\u00e9"
"""shows whether a tokenizer lower-cases and strips accents"""
_PART_TITLES = {"pooler": "the pooler", "mlm": "the MLM head", "nsp": "the NSP head"}


def model_config_from_hf(hf_dir: str | Path) -> ModelConfig:
    """The ModelConfig of a Hugging Face folder or hub name, for the longest sequences it supports.

    Raises: ValueError naming the field of config.json that megatron-core would compute differently.
    """
    folder = resolve_model_folder(str(hf_dir))
    return model_config_from_dict(read_hf_config(folder), str(folder / "config.json"))


def model_flags_from_hf(hf_dir: str | Path) -> dict[str, Any]:
    """{option name: value} for a run from this folder, unless its own flags say otherwise: the network's shape.

    Settings that do not belong to the weights (sequence length, vocabulary padding) are left to the run.
    """
    flags = asdict(_checkpoint_config(hf_dir) if _is_checkpoint(hf_dir) else model_config_from_hf(hf_dir))
    return {name: value for name, value in flags.items() if name not in _RUN_OPTIONS}


def hf_vocab_size(hf_dir: str | Path) -> int:
    """Vocabulary size of a folder, hub name or checkpoint with which the network must be built; a tokenizer may have
    fewer entries."""
    if _is_checkpoint(hf_dir):
        return int(read_run_config(find_checkpoint(hf_dir))["vocab_size"])
    return int(read_hf_config(resolve_model_folder(str(hf_dir)))["vocab_size"])


def original_hf_config(path: str | Path) -> dict[str, Any]:
    """config.json of the Hugging Face model that `path`, a folder, hub name or checkpoint, comes from; {} for none.

    Kept with the checkpoints of a run, it lets an export restore the fields that the network does not need.
    """
    if _is_checkpoint(path):
        return read_run_config(find_checkpoint(path)).get(HF_CONFIG_KEY) or {}
    return read_hf_config(resolve_model_folder(str(path)))


def load_hf_into_model(hf_dir: str | Path, model: SplitBert, *, tokenizer_dir: str | Path | None = None) -> list[str]:
    """Fill the parameters of `model` (any tensor-parallel size and dtype) from a Hugging Face folder or hub name.

    `tokenizer_dir`, the shards' tokenizer, is compared with the folder's own. Returns the names of the parameters that
    the folder lacks and that keep their fresh values; rank 0 also warns about them and about weights that this network
    has no place for. Raises: ValueError on every rank, before any parameter is changed.
    """
    source: HfFolder | CheckpointWeights
    if _is_checkpoint(hf_dir):
        source = CheckpointWeights(read_checkpoint_source(hf_dir))
    else:
        source = HfFolder(resolve_model_folder(str(hf_dir)))
    _check_same_network(source, model)
    if tokenizer_dir is not None and source.tokenizer_dir is not None:
        check_same_vocabulary(source.tokenizer_dir, Path(tokenizer_dir))
    fresh = fill_parameters(model, source.rows, source.megatron_tensor)
    if model.groups.world_rank == 0:
        _warn_about_parts(source, model, fresh)
    return fresh


@torch.no_grad()
def fill_parameters(model: SplitBert, rows: Mapping[str, Row], whole_tensor: Callable[[str], Tensor]) -> list[str]:
    """Copy this rank's part of `whole_tensor(name)`, unpadded, into each parameter that has a row.

    Returns the names of the parameters without one. Rows without a parameter are skipped.
    """
    parameters = dict(model.named_parameters())
    groups = model.groups
    for name, row in rows.items():
        if name not in parameters:
            continue
        if row.is_vocabulary:
            copy_vocabulary_shard(parameters[name], whole_tensor(name), tp_rank=groups.tp_rank)
        else:
            part = shard(whole_tensor(name), row.split, tp_rank=groups.tp_rank, tp_size=groups.tp_size)
            parameters[name].copy_(part)
    return [name for name in parameters if name not in rows]


def _is_checkpoint(path: str | Path) -> bool:
    """Whether `path` is a run's folder or one checkpoint of this project."""
    return bool(list_iterations(Path(path))) or (Path(path) / COMPLETE_FILE).is_file()


def _checkpoint_config(path: str | Path) -> ModelConfig:
    folder = find_checkpoint(path)
    return model_config_of(read_run_config(folder), folder)


def _check_same_network(source: HfFolder | CheckpointWeights, model: SplitBert) -> None:
    """Check that the network was built for this folder: sizes, epsilon and vocabulary."""
    for field in fields(ModelConfig):
        ours, given = getattr(model.model_config, field.name), getattr(source.model_config, field.name)
        if field.name not in (*_RUN_OPTIONS, *_TRAINING_OPTIONS) and ours != given:
            flag = "--" + field.name.replace("_", "-")
            raise ValueError(f"{flag} must be {given} as in {source.folder}, but is {ours} instead.")
    if model.real_vocab_size != source.sizes.vocab_size:
        raise ValueError(
            f"The vocabulary must have the {source.sizes.vocab_size} entries of {source.folder}, but has "
            f"{model.real_vocab_size} instead. Preprocess the corpus with the tokenizer of that folder."
        )


def check_same_vocabulary(hf_dir: Path, tokenizer_dir: Path) -> None:
    """Compare two tokenizers entry by entry, and warn where they prepare text differently (case, accents).

    Raises: ValueError naming an entry that has two ids: the weights would belong to the wrong words.
    """
    from megatron_alum.data.tokenizers.tokenizer import load_tokenizer

    their_tokenizer, our_tokenizer = load_tokenizer(hf_dir), load_tokenizer(tokenizer_dir)
    theirs, ours = their_tokenizer.get_vocab(), our_tokenizer.get_vocab()
    for token, index in sorted(ours.items(), key=lambda item: item[1]):
        if theirs.get(token) != index:
            raise ValueError(
                f"The tokenizer of the shards ({tokenizer_dir}) must be that of {hf_dir}, but gives {token!r} the id "
                f"{index} instead of {theirs.get(token)}. Preprocess the corpus with --tokenizer {hf_dir}."
            )
    prepared = [normalized(tokenizer, PROBE) for tokenizer in (their_tokenizer, our_tokenizer)]
    if prepared[0] != prepared[1]:
        warnings.warn(
            f"{hf_dir} reads {PROBE!r} as {prepared[0]!r}, but the shards were made with {tokenizer_dir}, which reads "
            f"it as {prepared[1]!r}: the model would see different text from its training.",
            stacklevel=3,
        )


def normalized(tokenizer: Any, text: str) -> str:
    """`text` as a fast tokenizer normalises it before splitting words."""
    normalizer = tokenizer.backend_tokenizer.normalizer
    return text if normalizer is None else str(normalizer.normalize_str(text))


def _warn_about_parts(source: HfFolder | CheckpointWeights, model: SplitBert, fresh: list[str]) -> None:
    if fresh:
        warnings.warn(
            f"{source.folder} has no weights for {_titles(fresh)}: {list_names(fresh)} start from fresh values.",
            stacklevel=3,
        )
    known = dict(model.named_parameters())
    dropped = [name for name in source.rows if name not in known]
    dropped_heads = getattr(source, "task_heads", [])
    if dropped_heads:
        warnings.warn(
            f"{source.folder} was fine-tuned: its head ({list_names(dropped_heads)}) is left out, only the encoder is "
            "read.",
            stacklevel=3,
        )
    if dropped:
        warnings.warn(
            f"{model.model_config.model_type} has no place for {_titles(dropped)} of {source.folder}: "
            f"{list_names(dropped)} will not be trained.",
            stacklevel=3,
        )


def _titles(names: list[str]) -> str:
    starts = {"pooler": ("pooler.",), "mlm": ("lm_head.", "output_layer."), "nsp": ("binary_head.",)}
    return ", ".join(_PART_TITLES[part] for part, start in starts.items() if any(n.startswith(start) for n in names))
