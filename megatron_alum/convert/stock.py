"""Checkpoints of stock Megatron-LM BERT, to be exported by to-hf.

Two formats: torch_dist (`--ckpt-format torch_dist`, .metadata and common_state.py) and torch (rank_files.py: one file
per tensor-parallel rank and pipeline stage); three key layouts: the local spec's, Transformer Engine's, which folds
LayerNorms into the next linear, and that from before megatron-core (legacy.py). The network's sizes come from
the arguments stored with the weights, or from the tensors if none are stored; both are checked (stock_arguments.py).
A tokenizer path among them may no longer be valid, so the caller gives one; its length is the vocabulary without
padding.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_alum.config.places import about
from megatron_alum.convert.common_state import read_common_state
from megatron_alum.convert.keys import ARCHITECTURES
from megatron_alum.convert.megatron_folder import (
    WORD_TABLE,
    DistributedTensors,
    StoredTensors,
    check_all_used,
    count_layers,
    read_megatron_tensors,
)
from megatron_alum.convert.rank_files import (
    RankFileTensors,
    join_stages,
    load_rank_files,
    parts_in_order,
    rank_grid,
    with_megatron_core_names,
)
from megatron_alum.convert.stock_arguments import (
    attention_heads,
    check_vocabulary,
    stock_model_config,
    stored_arguments,
)
from megatron_alum.convert.to_hf import ExportSource

ARCHITECTURE = ARCHITECTURES["megatron-bert"]
_TYPE_TABLE, _PAIR_HEAD = "embedding.tokentype_embeddings.weight", "binary_head.weight"


def read_stock_source(
    folder: Path, tokenizer_dir: Path | None, *, num_attention_heads: int | None = None
) -> ExportSource:
    """What `export_folder` needs from a stock checkpoint folder; `num_attention_heads` if it stores no arguments.

    Raises: ValueError for a model other than a supported BERT, missing files, and a tokenizer that is missing or
    of another size.
    """
    if tokenizer_dir is None:
        raise ValueError(
            f"--tokenizer must name the Hugging Face tokenizer folder that {folder} was trained with, but is not "
            "given: a Megatron-LM checkpoint holds none."
        )
    from megatron_alum.data.tokenizers.tokenizer import load_tokenizer

    grid = rank_grid(folder)
    contents = load_rank_files(grid)
    common = contents[0][0] if contents else read_common_state(folder)
    args = stored_arguments(common, folder)
    stored: StoredTensors
    if contents:
        heads = attention_heads(args, num_attention_heads, _hidden_size(contents, folder), folder)
        stored = RankFileTensors(folder, with_megatron_core_names(contents, heads, folder), ARCHITECTURE)
    else:
        stored = DistributedTensors(folder)
        heads = attention_heads(args, num_attention_heads, stored.shapes.get(WORD_TABLE, (0, 1))[1], folder)
    check_all_used(stored, ARCHITECTURE)
    config = stock_model_config(args, _shapes(stored), heads, folder)
    tensors = read_megatron_tensors(stored, ARCHITECTURE, config.num_layers)
    _add_token_types(tensors, args)
    with about("--tokenizer"):
        entries = len(load_tokenizer(tokenizer_dir))
    if WORD_TABLE in tensors:
        rows = len(tensors[WORD_TABLE])
        check_vocabulary(args, entries=entries, rows=rows, ranks=max(1, len(grid)), folder=folder)
    return ExportSource(
        label=str(folder),
        model=config,
        vocab_size=entries,
        tensors=tensors,
        tokenizer_dir=tokenizer_dir,
        iteration=int(common.get("iteration") or 0),
    )


def _hidden_size(contents: list[list[dict[str, Any]]], folder: Path) -> int:
    """For files whose names are not megatron-core's yet: every layout has the first layer's LayerNorm."""
    first = join_stages(parts_in_order(with_megatron_core_names([contents[0][:1]], 1, folder)[0]))
    sizes = [len(tensor) for name, tensor in first.items() if "norm" in name and tensor.dim() == 1]
    return sizes[0] if sizes else 1


def _shapes(stored: StoredTensors) -> dict[str, int]:
    """{argument: size} from the tensors; 1 for a missing tensor, which the check of shapes will report."""

    def size(name: str, dim: int) -> int:
        stack = name.replace(".{i}", "")
        if stack != name and stack in stored.shapes:
            return stored.shapes[stack][dim + 1]
        return stored.shapes.get(name.format(i=0), (1, 1))[dim]

    return {
        "num_layers": max(1, count_layers(stored)),
        "hidden_size": size(WORD_TABLE, 1),
        "ffn_hidden_size": size("encoder.layers.{i}.mlp.linear_fc1.weight", 0),
        "max_position_embeddings": size("embedding.position_embeddings.weight", 0),
    }


def _add_token_types(tensors: dict[str, Tensor], args: argparse.Namespace) -> None:
    """A model without a sentence-pair head has no token types either: adding zeros leaves its function as it is."""
    if not getattr(args, "bert_binary_head", True) or _PAIR_HEAD not in tensors:
        words = tensors.get(WORD_TABLE)
        if words is not None and _TYPE_TABLE not in tensors:
            tensors[_TYPE_TABLE] = torch.zeros(2, words.shape[1], dtype=words.dtype)
