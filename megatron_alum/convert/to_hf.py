"""Exports a checkpoint as a Hugging Face folder: weights, config.json, tokenizer and a model card.

The steps are those of `export_folder`, top-down: whole tensors (megatron_folder.py) are renamed and reshaped
(translate.py), put into the transformers class (hf_model.py), and saved by transformers; the run's tokenizer is added.
The folder appears only when complete.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_alum.config.model import ModelConfig
from megatron_alum.config.places import about
from megatron_alum.convert.card_words import CardWish
from megatron_alum.convert.hf_config import ExportKind, hf_config_fields, sizes_of, tokenizer_ids
from megatron_alum.convert.hf_model import build_hf_model, export_rows, export_state_dict
from megatron_alum.convert.keys import ARCHITECTURES
from megatron_alum.convert.model_card import CardFacts, model_card
from megatron_alum.convert.output import atomic_folder, require_free
from megatron_alum.convert.tokenizer_files import copy_tokenizer, fitting_tokenizer, limit_length
from megatron_alum.convert.translate import Sizes, check_shapes

POSITION_TABLE = "embedding.position_embeddings.weight"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class ExportSource:
    """Everything that an export is made from, whatever trained it."""

    label: str
    """The checkpoint as the user knows it, for error messages."""
    model: ModelConfig
    """Shape of the network."""
    vocab_size: int
    """Entries of the tokenizer; the stored vocabulary has at least as many rows."""
    tensors: Mapping[str, Tensor]
    """{Megatron name: whole tensor}."""
    tokenizer_dir: Path | None = None
    """Hugging Face tokenizer folder; None for a checkpoint without one."""
    original_config: Mapping[str, Any] = field(default_factory=dict)
    """config.json of the model this one was imported from; its extra fields are kept."""
    iteration: int | None = None
    run: Mapping[str, Any] = field(default_factory=dict)
    manifests: tuple[Mapping[str, Any], ...] = ()
    metrics: tuple[Mapping[str, Any], ...] = ()


def default_kind(source: ExportSource) -> ExportKind:
    """pretraining if a sentence-pair head was trained, else masked-lm; an unchanged import keeps its own class."""
    names = [name for name in source.original_config.get("architectures") or []]
    classes = ARCHITECTURES[source.model.model_type].classes
    if source.iteration in (None, 0) and names:
        found = [kind for kind, name in classes.items() if name == names[0]]
        return found[0] if found else "masked-lm"  # type: ignore[return-value]
    trained_pairs = "binary_head.weight" in source.tensors and source.run.get("objective") != "none"
    return "pretraining" if trained_pairs else "masked-lm"


def export_folder(
    source: ExportSource,
    output: Path,
    *,
    kind: ExportKind | None = None,
    dtype: str | None = None,
    check: Callable[[Path], None] | None = None,
    wish: CardWish | None = None,
) -> Path:
    """Write `source` to the new folder `output`; `dtype` None keeps the stored one. Returns `output`.

    `wish` has the facts for the model card that are not in the run. `check` sees the finished folder before it gets its
    name; if it raises, nothing is left behind.

    Raises: ValueError when `output` is not new or empty, or tensors are missing, unknown or misshapen.
    """
    require_free(output, "--output")
    kind = default_kind(source) if kind is None else kind
    architecture = ARCHITECTURES[source.model.model_type]
    sizes = sizes_of(source.model, source.vocab_size)
    _check_source(source, sizes, kind)
    tokenizer = None
    if source.tokenizer_dir is not None:
        with about("--tokenizer"):
            tokenizer = fitting_tokenizer(source.tokenizer_dir, source.vocab_size)
    ids = {} if tokenizer is None else tokenizer_ids(tokenizer)
    if source.model.first_position and "pad_token_id" in ids:
        source = _counted_from(source, ids["pad_token_id"] + 1)
    state = export_state_dict(source.tensors, architecture, sizes_of(source.model, source.vocab_size), kind)
    if dtype is not None:
        state = {name: tensor.to(DTYPES[dtype]) for name, tensor in state.items()}
    fields = hf_config_fields(source.model, source.vocab_size, source.original_config) | ids
    model = build_hf_model(architecture, kind, fields, state)
    with atomic_folder(output) as partial:
        model.save_pretrained(partial)
        if source.tokenizer_dir is not None:
            copy_tokenizer(source.tokenizer_dir, partial, tokenizer)
            limit_length(partial, source.model.max_position_embeddings)
        card = _card(source, output.name, architecture.classes[kind], wish or CardWish())
        (partial / "README.md").write_text(card, encoding="utf-8")
        if check is not None:
            check(partial)
    return output


def _counted_from(source: ExportSource, first_position: int) -> ExportSource:
    """The same network with its positions shifted: transformers' RoBERTa expects them after the padding id."""
    if first_position == source.model.first_position:
        return source
    table = source.tensors[POSITION_TABLE]
    used = table[source.model.first_position :]
    moved = torch.cat((table.new_zeros(first_position, table.shape[1]), used))
    model = replace(source.model, first_position=first_position)
    return replace(source, model=model, tensors={**source.tensors, POSITION_TABLE: moved})


def _check_source(source: ExportSource, sizes: Sizes, kind: ExportKind) -> None:
    """Names and shapes of the rows that this export needs, the vocabulary at least as long as the tokenizer."""
    rows = export_rows(ARCHITECTURES[source.model.model_type], sizes, kind, source.tensors)
    expected = {row.megatron: sizes.shape(row) for row in rows}
    given = {}
    for row in rows:
        if row.megatron not in source.tensors:
            continue
        shape = tuple(source.tensors[row.megatron].shape)
        if row.is_vocabulary and shape[0] >= sizes.vocab_size:
            shape = (sizes.vocab_size, *shape[1:])
        given[row.megatron] = shape
    check_shapes(source.label, given, expected)


def _card(source: ExportSource, name: str, class_name: str, wish: CardWish) -> str:
    return model_card(
        CardFacts(
            name=name,
            class_name=class_name,
            iteration=source.iteration,
            run=source.run,
            manifests=source.manifests,
            metrics=source.metrics,
            wish=wish,
        )
    )
