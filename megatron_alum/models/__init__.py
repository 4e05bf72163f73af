"""BERT and RoBERTa on megatron-core, split into embed, encode and heads."""

from megatron_alum.models.bert import SplitBert
from megatron_alum.models.build import build_model, padded_vocab_size
from megatron_alum.models.heads import HeadOutputs

__all__ = ["HeadOutputs", "SplitBert", "build_model", "padded_vocab_size"]
