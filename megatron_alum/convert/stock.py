"""Checkpoints of stock Megatron-LM BERT (its megatron-core model), to be exported by to-hf.

Two formats: torch_dist (`--ckpt-format torch_dist`, common.pt and .metadata) and torch (rank_files.py: one file a
tensor-parallel rank and pipeline stage); two key layouts: the local spec's and Transformer Engine's, which folds
LayerNorms into the next linear. The network's sizes come from the arguments stored with the weights. They name no
tokenizer that could be trusted to lie where it did, so the caller gives one; its length is the vocabulary without
padding.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from megatron_alum.config.model import ModelConfig
from megatron_alum.convert.inert_pickle import load_inert
from megatron_alum.convert.keys import ARCHITECTURES
from megatron_alum.convert.megatron_folder import DistributedTensors, StoredTensors, read_megatron_tensors
from megatron_alum.convert.rank_files import RankFileTensors, rank_grid
from megatron_alum.convert.to_hf import ExportSource

MODEL_TYPE: Literal["megatron-bert"] = "megatron-bert"
_LATEST = "latest_checkpointed_iteration.txt"


def find_stock_checkpoint(load: str | Path) -> Path | None:
    """The folder of a stock checkpoint's tensors: `load` itself or the iteration it calls its latest, or None."""
    given = Path(load)
    latest = given / _LATEST
    candidates = [given]
    if latest.is_file() and latest.read_text(encoding="utf-8").strip().isdigit():
        candidates.append(given / f"iter_{int(latest.read_text(encoding='utf-8')):07d}")
    for folder in candidates:
        is_distributed = (folder / "common.pt").is_file() and not (folder / "config.json").is_file()
        if is_distributed or rank_grid(folder):
            return folder
    return None


def read_stock_source(folder: Path, tokenizer_dir: Path | None) -> ExportSource:
    """What `export_folder` needs from a stock checkpoint folder.

    Raises: ValueError for another model than a megatron-core BERT, missing files, and a missing tokenizer.
    """
    if tokenizer_dir is None:
        raise ValueError(
            f"--tokenizer must name the Hugging Face tokenizer folder that {folder} was trained with, but is not "
            "given: a Megatron-LM checkpoint holds none."
        )
    from megatron_alum.data.tokenizers import load_tokenizer

    grid = rank_grid(folder)
    common = load_inert(grid[0][0] if grid else folder / "common.pt")
    config = _model_config(common, folder)
    architecture = ARCHITECTURES[MODEL_TYPE]
    stored: StoredTensors = (
        RankFileTensors(folder, grid, architecture, config.num_layers) if grid else DistributedTensors(folder)
    )
    return ExportSource(
        label=str(folder),
        model=config,
        vocab_size=len(load_tokenizer(tokenizer_dir)),
        tensors=read_megatron_tensors(stored, architecture, config.num_layers),
        tokenizer_dir=tokenizer_dir,
        iteration=int(common.get("iteration") or 0),
    )


def _model_config(common: Mapping[str, Any], folder: Path) -> ModelConfig:
    """The network described by the stored arguments."""
    args = common.get("args")
    needed = ("num_layers", "hidden_size", "num_attention_heads", "ffn_hidden_size", "max_position_embeddings")
    missing = [name for name in needed if not isinstance(getattr(args, name, None), int)]
    if not isinstance(args, argparse.Namespace) or missing:
        raise ValueError(f"{folder} must hold Megatron-LM's arguments, but lacks {', '.join(missing)}.")
    for name, value in (("position_embedding_type", "learned_absolute"), ("normalization", "LayerNorm")):
        if getattr(args, name, value) != value:
            raise ValueError(f"`{name}` of {folder} must be {value}, but is {getattr(args, name)} instead.")
    if getattr(args, "bias_gelu_fusion", False):
        warnings.warn(
            f"{folder} was trained with --bias-gelu-fusion, the tanh form of GELU; the export computes it exactly, "
            "which changes activations by up to 5e-4.",
            stacklevel=2,
        )
    epsilon = getattr(args, "norm_epsilon", None) or getattr(args, "layernorm_epsilon", None) or 1e-5
    return ModelConfig(
        model_type=MODEL_TYPE,
        seq_length=args.max_position_embeddings,
        **{name: getattr(args, name) for name in needed},
        layernorm_epsilon=float(epsilon),
        hidden_dropout=float(getattr(args, "hidden_dropout", 0.1)),
        attention_dropout=float(getattr(args, "attention_dropout", 0.1)),
        init_method_std=float(getattr(args, "init_method_std", 0.02)),
    )
