"""Attention within sequences on the CPU, for which torch has no kernel: sequences of equal length are batched.

Sequences of equal length form a block [b x heads, L, D], whose attention is two batched products, a softmax and a
dropout; others form a block alone, since on the CPU another block costs less than any padding (measured with 16 and 64
sequences of real lengths up to 128 and 512). Nothing is padded, so the results for a sequence are the same to the bit
whatever else is in the batch, and a value that is not finite reaches no other sequence.
"""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_alum.ops import draw_seed, seeded_dropout

# Queries x keys of a block, chosen so that the weights of its heads stay in the cache: 16 sequences of 512 in one block
# take twice the time of 16 blocks.
_LARGEST_BLOCK = 128 * 1024


class Block(NamedTuple):
    """Sequences that share batched products."""

    length: int
    """of each"""
    starts: tuple[int, ...]
    """first token of each"""


def cut_into_blocks(lengths: Sequence[int]) -> tuple[Block, ...]:
    """Blocks of sequences of these lengths, which are stored back to back; longest first."""
    starts_of: dict[int, list[int]] = {}
    for length, start in zip(lengths, accumulate(lengths, initial=0), strict=False):
        starts_of.setdefault(length, []).append(start)
    blocks = []
    for length, starts in sorted(starts_of.items(), reverse=True):
        size = max(1, _LARGEST_BLOCK // length**2)
        blocks += [Block(length, tuple(starts[i : i + size])) for i in range(0, len(starts), size)]
    return tuple(blocks)


def block_attention(
    query: Tensor, key: Tensor, value: Tensor, blocks: Sequence[Block], probability: float = 0.0
) -> Tensor:
    """softmax(q k^T / sqrt(D)) v of each sequence, [T, heads, D] on the CPU, with dropout of the weights.

    Tokens behind those of the blocks get 0. Derivatives of first order only.
    """
    return _BlockAttention.apply(query, key, value, blocks, probability)


class _BlockAttention(torch.autograd.Function):
    """Written by hand, because autograd would keep the scores, the weights before and after dropout and copies of q, k
    and v. Here the weights of long sequences, which grow with L squared, are recomputed by the backward pass (a
    sixth of its products); those of short ones, smaller than their q, k and v, are kept. Dropout masks are regenerated
    from their seeds.

    With P the weights, M the mask (0 or 1 / keep), G the gradient of the output O = (M P) V, the gradient of the scores
    is P (M G V^T - d), d the row sums of M P G V^T. These equal the row sums of G O, so no second mask is needed.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, blocks: Sequence[Block], probability: float
    ) -> Tensor:
        out = _empty_but_for_the_tail(value, blocks)
        seeds = [draw_seed() for _ in blocks] if probability else []
        kept: list[Tensor | None] = []
        for number, block in enumerate(blocks):
            q, k, v = (_gathered(tensor, block) for tensor in (query, key, value))
            weights = _weights(q, k)
            kept.append(weights if block.length <= 3 * query.size(-1) else None)
            if probability:
                weights = seeded_dropout(weights, seeds[number], probability)
            _scatter(out, torch.bmm(weights, v), block)
        ctx.save_for_backward(query, key, value, out, *kept)
        ctx.blocks, ctx.probability, ctx.seeds = blocks, probability, seeds
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, *kept = ctx.saved_tensors
        to_query, to_key, to_value = (_empty_but_for_the_tail(query, ctx.blocks) for _ in range(3))
        row_sums = (gradients[0] * out).sum(-1, keepdim=True)
        for number, (block, weights) in enumerate(zip(ctx.blocks, kept, strict=True)):
            q, k, v, gradient, sums = (
                _gathered(tensor, block) for tensor in (query, key, value, gradients[0], row_sums)
            )
            weights = _weights(q, k) if weights is None else weights
            dropped = seeded_dropout(weights, ctx.seeds[number], ctx.probability) if ctx.probability else weights
            _scatter(to_value, torch.bmm(dropped.transpose(1, 2), gradient), block)
            to_scores = torch.bmm(gradient, v.transpose(1, 2)).mul_(dropped).addcmul_(weights, sums, value=-1.0)
            _scatter(to_query, _scaled_product(to_scores, k, q.size(-1)), block)
            _scatter(to_key, _scaled_product(to_scores.transpose(1, 2), q, q.size(-1)), block)
        return to_query, to_key, to_value, None, None


def _weights(q: Tensor, k: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)), [b x heads, L, L]."""
    return torch.softmax(_scaled_product(q, k.transpose(1, 2), q.size(-1)), dim=-1)


def _scaled_product(a: Tensor, b: Tensor, head_size: int) -> Tensor:
    """a @ b / sqrt(head size)."""
    return torch.baddbmm(a.new_empty(()), a, b, beta=0.0, alpha=1.0 / math.sqrt(head_size))


def _empty_but_for_the_tail(like: Tensor, blocks: Sequence[Block]) -> Tensor:
    """[T, heads, D], contiguous; zeros behind the tokens of the blocks."""
    empty = like.new_empty(like.shape)
    empty[sum(block.length * len(block.starts) for block in blocks) :] = 0.0
    return empty


def _gathered(tensor: Tensor, block: Block) -> Tensor:
    """[T, heads, D] -> the block's sequences [b x heads, L, D]; a view if the block has a single sequence."""
    parts = [tensor[start : start + block.length].transpose(0, 1) for start in block.starts]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _scatter(out: Tensor, rows: Tensor, block: Block) -> None:
    """Copies rows [b x heads, L, D] to their places in out [T, heads, D]."""
    for start, one in zip(block.starts, rows.chunk(len(block.starts)), strict=True):
        out[start : start + block.length].copy_(one.transpose(0, 1))
