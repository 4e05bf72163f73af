"""The arguments that Megatron-LM stores with its weights: the values for which the export computes the same.

`FUNCTION` lists every argument that touches the function of a BERT, with the values under which our network computes
it; any other value is refused by name. Absence, from versions without the argument, is such a value.
Arguments of dropout, fusion, precision and parallelism are not listed: they change no predictions beyond rounding.
Source: Megatron-LM's arguments.py and megatron-core's TransformerConfig, releases v1.0 to 2026.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_alum.config.model import ModelConfig

_OFF: tuple[Any, ...] = (False, None, 0, "", [])
_NO_EXPERTS: tuple[Any, ...] = (*_OFF, 1, [1])
FUNCTION: dict[str, tuple[Any, ...]] = {
    # positions
    "position_embedding_type": ("learned_absolute",),
    "use_rotary_position_embeddings": _OFF,
    "add_position_embedding": (True,),
    # normalisation
    "normalization": ("LayerNorm",),
    "apply_layernorm_1p": _OFF,
    "layernorm_zero_centered_gamma": _OFF,
    "apply_residual_connection_post_layernorm": _OFF,
    "qk_layernorm": _OFF,
    "qk_l2_norm": _OFF,
    # feed-forward
    "openai_gelu": _OFF,
    "squared_relu": _OFF,
    "swiglu": _OFF,
    "geglu": _OFF,
    "quick_geglu": _OFF,
    "gated_linear_unit": _OFF,
    "activation_func_clamp_value": (None,),
    "num_experts": _NO_EXPERTS,
    "num_moe_experts": _NO_EXPERTS,
    # attention
    "attention_head_type": (None, "multihead"),
    "multi_latent_attention": _OFF,
    "window_size": (None,),
    "softmax_type": (None, "vanilla"),
    "softmax_scale": (None,),
    "attention_output_gate": _OFF,
    "experimental_attention_variant": _OFF,
    "linear_attention_type": _OFF,
    "linear_attention_freq": (None,),
    # layers and heads
    "add_bias_linear": (True,),
    "untie_embeddings_and_output_weights": _OFF,
    "heterogeneous_layers_config_path": _OFF,
    "is_hybrid_model": _OFF,
    "hybrid_layer_pattern": _OFF,
    "hybrid_override_pattern": _OFF,
    "enable_mhc_connections": _OFF,
    "mtp_num_layers": _OFF,
    "retro_add_retriever": _OFF,
    "use_mup": _OFF,
}
_OWN_SPECS = ("local", "megatron.core.models.bert.bert_layer_specs")
_SIZES = ("num_layers", "hidden_size", "num_attention_heads", "ffn_hidden_size", "max_position_embeddings")
HEAD_SIZE = 64
"""of every BERT that NVIDIA published; the files of the first ones state neither this nor the number of heads"""
ADDED_ENTRIES = 2
"""[BOS] and [EOS], which Megatron-LM adds to a BERT vocabulary and never uses"""


def stored_arguments(common: Mapping[str, Any], folder: Path) -> argparse.Namespace:
    """The arguments; an empty Namespace for a file from before they were stored.

    Raises: ValueError naming an argument that changes the function.
    """
    args = common.get("args")
    if args is None:
        return argparse.Namespace()
    if not isinstance(args, argparse.Namespace):
        raise ValueError(f"`args` of {folder} must be Megatron-LM's arguments, but is {args!r} instead.")
    for name, allowed in FUNCTION.items():
        value = getattr(args, name, allowed[0])
        if value not in allowed:
            raise ValueError(
                f"`{name}` of {folder} must be {allowed[0]}, but is {value} instead: transformers' MegatronBert "
                "computes another function, so this model cannot be exported."
            )
    _check_heads(args, folder)
    _check_functions(args, folder)
    if getattr(args, "bias_gelu_fusion", False):
        warnings.warn(
            f"{folder} was trained with --bias-gelu-fusion, the tanh form of GELU; the export computes it exactly, "
            "which changes activations by up to 5e-4.",
            stacklevel=3,
        )
    return args


def stock_model_config(
    args: argparse.Namespace, shapes: Mapping[str, int], num_attention_heads: int, folder: Path
) -> ModelConfig:
    """The network of the arguments; missing sizes are taken from the tensors, `shapes`.

    Raises: ValueError for a size that is not a number.
    """
    sizes: dict[str, Any] = dict(shapes) | {"num_attention_heads": num_attention_heads}
    for name in _SIZES:
        value = getattr(args, name, None)
        if value is not None and not (isinstance(value, int) and value > 0):
            raise ValueError(f"`{name}` of {folder} must be a positive number, but is {value!r} instead.")
        sizes |= {} if value is None or name == "num_attention_heads" else {name: value}
    epsilon = getattr(args, "norm_epsilon", None) or getattr(args, "layernorm_epsilon", None) or 1e-5
    return ModelConfig(
        model_type="megatron-bert",
        seq_length=sizes["max_position_embeddings"],
        **{name: sizes[name] for name in _SIZES},
        layernorm_epsilon=float(epsilon),
        hidden_dropout=float(getattr(args, "hidden_dropout", 0.1)),
        attention_dropout=float(getattr(args, "attention_dropout", 0.1)),
        init_method_std=float(getattr(args, "init_method_std", 0.02)),
    )


def attention_heads(args: argparse.Namespace, given: int | None, hidden_size: int, folder: Path) -> int:
    """The number of heads: stored, or `given` by --num-attention-heads, or from NVIDIA's head size with a warning.

    Raises: ValueError when it cannot be known or the flag contradicts what is stored.
    """
    stored = getattr(args, "num_attention_heads", None)
    if stored is not None:
        if given is not None and given != stored:
            raise ValueError(f"--num-attention-heads must be {stored} as in {folder}, but is {given} instead.")
        return int(stored)
    if given is not None:
        if given < 1 or hidden_size % given:
            raise ValueError(f"--num-attention-heads must divide the {hidden_size} channels, but is {given} instead.")
        return given
    if hidden_size % HEAD_SIZE:
        raise ValueError(
            f"--num-attention-heads must say how many heads {folder} has: it stores no arguments, and no tensor shows."
        )
    heads = hidden_size // HEAD_SIZE
    warnings.warn(
        f"{folder} stores no arguments: {heads} attention heads of size {HEAD_SIZE} are assumed, as in the BERT models "
        "that NVIDIA published. Give another number with --num-attention-heads.",
        stacklevel=3,
    )
    return heads


def check_vocabulary(args: argparse.Namespace, *, entries: int, rows: int, ranks: int, folder: Path) -> None:
    """Check that a tokenizer of `entries` entries can be the one whose vocabulary was padded to `rows`.

    `ranks` is the tensor-parallel size if the arguments do not state it. Raises: ValueError when it cannot.
    """
    parallel = getattr(args, "tensor_model_parallel_size", None) or getattr(args, "model_parallel_size", None) or ranks
    multiple = int(getattr(args, "make_vocab_size_divisible_by", None) or 128) * int(parallel)
    added = ADDED_ENTRIES + int(getattr(args, "vocab_extra_ids", None) or 0)
    fewest = max(1, rows - multiple + 1 - added)
    if not fewest <= entries <= rows:
        raise ValueError(
            f"--tokenizer must have {fewest} to {rows} entries, which Megatron-LM pads to the {rows} rows of {folder}, "
            f"but has {entries} instead. Name the tokenizer that it was trained with."
        )


def _check_heads(args: argparse.Namespace, folder: Path) -> None:
    """Check that every head has its own key and value, and that the heads add up to the hidden size."""
    heads, hidden = (getattr(args, name, None) for name in ("num_attention_heads", "hidden_size"))
    size, groups = (getattr(args, name, None) for name in ("kv_channels", "num_query_groups"))
    if getattr(args, "group_query_attention", False) and groups != heads:
        raise ValueError(
            f"`num_query_groups` of {folder} must be {heads}, but is {groups} instead: heads that share keys cannot be "
            "exported."
        )
    if isinstance(size, int) and isinstance(heads, int) and size * heads != hidden:
        raise ValueError(
            f"`kv_channels` of {folder} must be {hidden} / {heads}, but is {size} instead: heads of another size "
            "cannot be exported."
        )


def _check_functions(args: argparse.Namespace, folder: Path) -> None:
    """Arguments that name code: the activation, and the specification of a layer."""
    activation = getattr(args, "activation_func", None)
    name = getattr(activation, "__name__", str(activation)).rsplit(".", 1)[-1]
    if activation is not None and name != "gelu":
        raise ValueError(f"`activation_func` of {folder} must be gelu, but is {name} instead.")
    spec = getattr(args, "spec", None)
    module = spec[0] if isinstance(spec, list | tuple) and spec else spec
    if module and module not in _OWN_SPECS:
        raise ValueError(
            f"`spec` of {folder} must be one of megatron-core's for BERT, but is {spec} instead: what its layers "
            "compute cannot be known."
        )
