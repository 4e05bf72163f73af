"""BERT and RoBERTa on megatron-core, split into embed, encode and heads."""

from megatron_alum.compat import silence_fallback_warnings

silence_fallback_warnings()  # before the first import of megatron-core

from megatron_alum.models.attention import attention_backend  # noqa: E402
from megatron_alum.models.bert import EncodedRows, Level, SplitBert  # noqa: E402
from megatron_alum.models.build import build_model, padded_vocab_size  # noqa: E402
from megatron_alum.models.heads import HeadOutputs  # noqa: E402
from megatron_alum.models.inputs import ModelInputs  # noqa: E402

__all__ = [
    "EncodedRows",
    "HeadOutputs",
    "Level",
    "ModelInputs",
    "SplitBert",
    "attention_backend",
    "build_model",
    "padded_vocab_size",
]
