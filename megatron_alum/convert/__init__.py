"""Conversion between Megatron checkpoints and Hugging Face folders, one key table per architecture, both directions."""

from megatron_alum.convert.checkpoint_source import HF_CONFIG_KEY
from megatron_alum.convert.from_hf import (
    hf_vocab_size,
    load_hf_into_model,
    model_config_from_hf,
    model_flags_from_hf,
    original_hf_config,
)

__all__ = [
    "HF_CONFIG_KEY",
    "hf_vocab_size",
    "load_hf_into_model",
    "model_config_from_hf",
    "model_flags_from_hf",
    "original_hf_config",
]
