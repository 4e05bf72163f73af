"""The layout of Megatron-LM before megatron-core: names under `language_model`, three orders of query, key and value.

    language_model.embedding.word_embeddings.weight                (position_embeddings, tokentype_embeddings alike)
    language_model.encoder.layers.0.self_attention.query_key_value.weight
    language_model.pooler.dense.weight    lm_head.bias    binary_head.weight

`encoder` was once called `transformer`, `self_attention` `attention`, and from 2023 on `layernorm` is `norm`; the file
holds them as nested dictionaries, flat within a module. The published BERT models have this layout. Rows of
query_key_value on one rank, with n heads of size d there, by `checkpoint_version`:

    0 (or not stored)   [3, n, d]        1.0   [n, d, 3]        2.0 and 3.0   [n, 3, d], megatron-core's

Sources: Megatron-LM's releases v1.0 to core_v0.11.0, megatron/model (later megatron/legacy/model) and checkpointing.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from megatron_alum.config.words import not_one_of

_TREE = "language_model"
_VERSIONS = (0.0, 1.0, 2.0, 3.0)
_LAYER = r"^language_model\.(?:encoder|transformer)\.layers\.(\d+)\."
_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^language_model\.(?:embedding\.)?(\w+_embeddings\.weight)$", r"embedding.\1"),
        (_LAYER + r"input_(?:layer)?norm\.", r"encoder.layers.\1.input_layernorm."),
        (_LAYER + r"post_attention_(?:layer)?norm\.", r"encoder.layers.\1.pre_mlp_layernorm."),
        (_LAYER + r"(?:self_)?attention\.query_key_value\.", r"encoder.layers.\1.self_attention.linear_qkv."),
        (_LAYER + r"(?:self_)?attention\.dense\.", r"encoder.layers.\1.self_attention.linear_proj."),
        (_LAYER + r"mlp\.dense_h_to_4h\.", r"encoder.layers.\1.mlp.linear_fc1."),
        (_LAYER + r"mlp\.dense_4h_to_h\.", r"encoder.layers.\1.mlp.linear_fc2."),
        (r"^language_model\.(?:encoder|transformer)\.final_(?:layer)?norm\.", "encoder.final_layernorm."),
        (r"^language_model\.pooler\.", "pooler."),
        (r"^lm_head\.(?:layer)?norm\.", "lm_head.layer_norm."),
        (r"^lm_head\.bias$", "output_layer.bias"),
        (r"^word_embeddings_for_head\.weight$", "output_layer.weight"),
    )
)


def is_legacy(part: Mapping[str, Any]) -> bool:
    """Whether one part of a network (`model` in a file) has this layout."""
    return any(name == _TREE or name.startswith(f"{_TREE}.") for name in part)


def read_version(content: Mapping[str, Any]) -> float:
    """`checkpoint_version` of a file, 0 if it stores none. Raises: ValueError for a version that never existed."""
    version = content.get("checkpoint_version", 0)
    if not isinstance(version, int | float) or float(version) not in _VERSIONS:
        raise ValueError(not_one_of("`checkpoint_version`", version, map(str, _VERSIONS)))
    return float(version)


def megatron_core_tensors(part: Mapping[str, Any], *, version: float, num_heads: int) -> dict[str, Tensor]:
    """One part's tensors under megatron-core's names, in its order of query, key and value.

    `num_heads` counts this rank's. A name without a counterpart is left unchanged, for the caller to refuse.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in _flat(part, ""):
        renamed = _renamed(name)
        is_qkv = ".linear_qkv." in renamed
        tensors[renamed] = _in_order(tensor, version=version, num_heads=num_heads) if is_qkv else tensor
    return tensors


def _flat(tree: Mapping[str, Any], before: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in tree.items():
        if isinstance(value, Tensor):
            yield before + name, value
        elif isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")


def _renamed(name: str) -> str:
    for pattern, replacement in _RULES:
        if pattern.match(name):
            return pattern.sub(replacement, name)
    return name


def _in_order(tensor: Tensor, *, version: float, num_heads: int) -> Tensor:
    """[3 n d, ...] of one rank with its rows as [n, 3, d]."""
    rest = tensor.shape[1:]
    if version == 0.0:
        return tensor.reshape(3, num_heads, -1, *rest).transpose(0, 1).reshape(tensor.shape)
    if version == 1.0:
        return tensor.reshape(num_heads, -1, 3, *rest).transpose(1, 2).reshape(tensor.shape)
    return tensor
