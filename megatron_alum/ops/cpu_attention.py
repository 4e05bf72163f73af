"""Attention within sequences on the CPU, for which torch has no kernel: each sequence and head by itself, on all
threads (csrc/ops/attention.cpp).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_alum.ops import dispatch
from megatron_alum.ops.cpu_dropout import draw_seed, threshold_of
from megatron_alum.reference import attention as reference


def sequence_attention(
    query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], probability: float = 0.0, *, impl: str = "auto"
) -> Tensor:
    """softmax(q k^T / sqrt(D)) v of each sequence, [T, heads, D], with dropout of the weights.

    The sequences, of these `lengths`, are stored back to back; tokens behind them get 0. The results for a sequence do
    not depend on the others at all. Derivatives of first order only. Other devices than the CPU take the reference,
    which is only good for comparisons there.
    """
    seed = draw_seed() if probability else torch.zeros((), dtype=torch.int64)
    threshold = threshold_of(probability) if probability else 0
    if query.device.type != "cpu" or dispatch.select(impl, query) == "reference":
        return reference.attention(query, key, value, lengths, seed, threshold)
    return _SequenceAttention.apply(query, key, value, lengths, seed, threshold)


class _SequenceAttention(torch.autograd.Function):
    """Keeps nothing that grows with the square of the lengths: backward forms weights and masks again."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], seed: Tensor, threshold: int
    ) -> Tensor:
        ctx.how = lengths, seed, threshold
        out: Tensor = torch.ops.megatron_alum.attention(query, key, value, *ctx.how)
        ctx.save_for_backward(query, key, value, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        parts = torch.ops.megatron_alum.attention_gradients(gradients[0], *ctx.saved_tensors, *ctx.how)
        return *parts, None, None, None
