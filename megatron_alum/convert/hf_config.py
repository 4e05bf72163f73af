"""config.json of transformers <-> our ModelConfig, and the transformers classes to which an architecture is exported.

A model that megatron-core would compute differently is refused here, from its configuration alone: another
architecture, relative positions, another activation than exact GELU, a decoder, untied output weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from megatron_alum.checkpoint.folder import COMPLETE_FILE
from megatron_alum.config.model import ModelConfig
from megatron_alum.config.words import not_one_of
from megatron_alum.convert.foreign import instead_of_a_model
from megatron_alum.convert.keys import ARCHITECTURES, Architecture, Part
from megatron_alum.convert.translate import Sizes

ExportKind = Literal["pretraining", "masked-lm", "encoder"]

# ModelConfig field -> config.json field, where both mean the same number.
_FIELDS = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_attention_heads",
    "ffn_hidden_size": "intermediate_size",
    "hidden_dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "layernorm_epsilon": "layer_norm_eps",
    "init_method_std": "initializer_range",
}
# config.json fields whose value is fixed in megatron-core's encoder: {field: (value there, what another value means)}.
_FIXED: dict[str, tuple[Any, str]] = {
    "hidden_act": ("gelu", "only exact GELU is computed alike"),
    "position_embedding_type": ("absolute", "relative positions have no counterpart in this encoder"),
    "is_decoder": (False, "only encoders are pre-trained by masked language modelling"),
    "add_cross_attention": (False, "only encoders are pre-trained by masked language modelling"),
    "tie_word_embeddings": (True, "the output layer shares the word embeddings here"),
}
PARTS_OF: dict[ExportKind, tuple[Part, ...]] = {
    "pretraining": ("encoder", "pooler", "mlm", "nsp"),
    "masked-lm": ("encoder", "mlm"),
    "encoder": ("encoder", "pooler"),
}


def read_hf_config(folder: Path) -> dict[str, Any]:
    """config.json of a Hugging Face folder as a plain dict, with the `model_type` that old files leave out.

    Raises: ValueError when it is missing or not a JSON object, naming what the folder is instead if that is known.
    """
    path = folder / "config.json"
    if not path.is_file() or (folder / COMPLETE_FILE).is_file():
        raise ValueError(
            instead_of_a_model(folder) or f"{folder} must be a Hugging Face model folder, but has no config.json."
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be JSON, but does not parse ({error}).") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} must be a JSON object, but is a {type(config).__name__} instead.")
    return config if "model_type" in config else config | _said_model_type(config)


def _said_model_type(config: Mapping[str, Any]) -> dict[str, str]:
    """The architecture of a file from before `model_type` (2019): that of its class, else BERT, if it has BERT's
    sizes and token types.
    """
    named = [str(name) for name in config.get("architectures") or []]
    for model_type, start in (("megatron-bert", "MegatronBert"), ("bert", "Bert"), ("roberta", "Roberta")):
        if any(name.startswith(start) for name in named):
            return {"model_type": model_type}
    is_bert = not named and {"hidden_size", "intermediate_size", "type_vocab_size"}.issubset(config)
    return {"model_type": "bert"} if is_bert and config["type_vocab_size"] == 2 else {}


def architecture_of(config: Mapping[str, Any], source: str) -> Architecture:
    """The key table for a config.json. Raises: ValueError naming what this encoder would compute differently."""
    model_type = config.get("model_type")
    if model_type not in ARCHITECTURES:
        refusal = not_one_of(f"`model_type` of {source}", model_type, ARCHITECTURES)
        raise ValueError(f"{refusal} Other architectures cannot be converted.")
    for field, (value, why) in _FIXED.items():
        if config.get(field, value) != value:
            raise ValueError(f"`{field}` of {source} must be {value!r}, but is {config[field]!r} instead: {why}.")
    return ARCHITECTURES[model_type]


def config_sizes(config: Mapping[str, Any], source: str) -> Sizes:
    """The sizes of a config.json. Raises: ValueError for a field that is missing or not a number."""

    def count(field: str) -> int:
        value = config.get(field)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"`{field}` of {source} must be a positive number, but is {value!r} instead.")
        return value

    return Sizes(
        vocab_size=count("vocab_size"),
        positions=count("max_position_embeddings"),
        token_types=count("type_vocab_size"),
        hidden=count("hidden_size"),
        ffn=count("intermediate_size"),
        num_layers=count("num_hidden_layers"),
        num_heads=count("num_attention_heads"),
    )


def model_config_from_dict(config: Mapping[str, Any], source: str) -> ModelConfig:
    """The ModelConfig of a config.json, for sequences as long as its position table allows.

    Raises: ValueError naming the field that is not a number or that megatron-core would compute differently.
    """
    architecture = architecture_of(config, source)
    sizes = config_sizes(config, source)
    probe = ModelConfig(model_type=architecture.model_type, model_size="tiny")
    if sizes.token_types != probe.num_token_types:
        raise ValueError(
            f"`type_vocab_size` of {source} must be {probe.num_token_types} for {architecture.model_type}, "
            f"but is {sizes.token_types} instead."
        )
    first = first_position_of(config, architecture, source)
    positions = sizes.positions - first
    if positions < 1:
        raise ValueError(
            f"`max_position_embeddings` of {source} must be more than the {first} rows up to the padding id, but is "
            f"{sizes.positions} instead."
        )
    given = {ours: _number(config[theirs], theirs, source) for ours, theirs in _FIELDS.items() if theirs in config}
    return ModelConfig(
        model_type=architecture.model_type,
        seq_length=positions,
        max_position_embeddings=positions,
        first_position=first,
        **{"layernorm_epsilon": _default_epsilon(architecture), **given},
    )


def first_position_of(config: Mapping[str, Any], architecture: Architecture, source: str) -> int:
    """Row of the position table that the first token takes: RoBERTa counts from its padding id, 1 by default.

    Raises: ValueError for a padding id outside the vocabulary.
    """
    if architecture.model_type != "roberta":
        return 0
    padding = config.get("pad_token_id")
    padding = 1 if padding is None else padding
    if not isinstance(padding, int) or isinstance(padding, bool) or padding < 0:
        raise ValueError(f"`pad_token_id` of {source} must be the number of an entry, but is {padding!r} instead.")
    return padding + 1


def _number(value: Any, field: str, source: str) -> Any:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(
            f"`{field}` of {source} must be a number, but is {value!r} instead. Write the value that the model was "
            "trained with, or remove the field to take the usual one."
        )
    return value


def _default_epsilon(architecture: Architecture) -> float:
    """transformers' default for fields that older config.json files leave out."""
    import transformers

    config_class = getattr(transformers, architecture.classes["encoder"]).config_class
    return float(config_class().layer_norm_eps)


def sizes_of(config: ModelConfig, vocab_size: int) -> Sizes:
    """The sizes of our model with an unpadded vocabulary of `vocab_size`."""
    return Sizes(
        vocab_size=vocab_size,
        positions=config.num_position_rows,
        token_types=config.num_token_types,
        hidden=config.hidden_size,
        ffn=config.ffn_hidden_size,
        num_layers=config.num_layers,
        num_heads=config.num_attention_heads,
    )


def hf_config_fields(config: ModelConfig, vocab_size: int, original: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of config.json for an export: `original` (from the folder of the import, or {}) overridden by our model's
    own."""
    fields = {name: value for name, value in original.items() if name not in ("transformers_version", "architectures")}
    fields |= {theirs: getattr(config, ours) for ours, theirs in _FIELDS.items()}
    if config.first_position:
        fields["pad_token_id"] = config.first_position - 1
    return fields | {
        "hidden_act": "gelu",
        "vocab_size": vocab_size,
        "type_vocab_size": config.num_token_types,
        "max_position_embeddings": config.num_position_rows,
    }


def tokenizer_ids(tokenizer: Any) -> dict[str, int]:
    """The special ids that config.json records: pad, and begin and end if the tokenizer has them."""
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    return {name: value for name, value in ids.items() if value is not None}
