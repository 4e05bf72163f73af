"""Attention within sequences on the CPU: sequences of similar length side by side, padded inside the attention alone.

torch has no kernel for packed sequences on the CPU, and one matrix product for each sequence leaves its threads idle.
Here sequences sorted by length are cut into few blocks [b, heads, L, D] with little padding between them; a block is
two batched products, a softmax and a dropout. Padded keys get weight 0, padded queries no gradient, and both hold zeros
rather than somebody's values, so that no number of one sequence, finite or not, reaches another.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_alum.ops import draw_seed, seeded_dropout

# What another block costs (a dozen calls), in units of one query times one key of all heads.
_COST_OF_A_BLOCK = 2048


class Block(NamedTuple):
    """Sequences that share one matrix product."""

    length: int
    """of the longest, to which the others are padded"""
    sequences: tuple[tuple[int, int], ...]
    """(first token, length) of each"""


def cut_into_blocks(lengths: Sequence[int]) -> tuple[Block, ...]:
    """Blocks of sequences of these lengths, which stand back to back, with the smallest cost: padded queries x keys,
    and something for each block.
    """
    starts, token = [], 0
    for length in lengths:
        starts.append(token)
        token += length
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    best: list[tuple[int, int]] = [(0, 0)]  # of the first j sequences: (cost, where their last block begins)
    for j in range(1, len(order) + 1):
        best.append(min((best[i][0] + (j - i) * lengths[order[i]] ** 2 + _COST_OF_A_BLOCK, i) for i in range(j)))
    blocks, end = [], len(order)
    while end:
        begin = best[end][1]
        members = order[begin:end]
        blocks.append(Block(lengths[members[0]], tuple((starts[i], lengths[i]) for i in members)))
        end = begin
    return tuple(reversed(blocks))


def block_attention(
    query: Tensor, key: Tensor, value: Tensor, blocks: Sequence[Block], probability: float = 0.0
) -> Tensor:
    """softmax(q k^T / sqrt(D)) v of each sequence, [T, heads, D], with dropout of the weights.

    Tokens of no block get 0. Derivatives of first order only.
    """
    return _BlockAttention.apply(query, key, value, blocks, probability)


class _BlockAttention(torch.autograd.Function):
    """By hand, because autograd would keep the scores, the weights before and after dropout and every padded copy: here
    the weights are kept, and the masks are drawn again from their seeds.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, blocks: Sequence[Block], probability: float
    ) -> Tensor:
        out = value.new_zeros(value.shape)
        seeds, kept = [], []
        for block in blocks:
            q, k, v = (_padded(tensor, block) for tensor in (query, key, value))
            weights = _softmax_of_real_keys(torch.bmm(q.mul_(_scale(query)), k.transpose(1, 2)), block)
            kept.append(weights)
            if probability:
                seeds.append(draw_seed())
                weights = seeded_dropout(weights, seeds[-1], probability)
            _put(out, torch.bmm(weights, v), block)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.blocks, ctx.probability, ctx.seeds = blocks, probability, seeds
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *kept = ctx.saved_tensors
        to_query, to_key, to_value = (tensor.new_zeros(tensor.shape) for tensor in (query, key, value))
        for number, (block, weights) in enumerate(zip(ctx.blocks, kept, strict=True)):
            q, k, v, gradient = (_padded(tensor, block) for tensor in (query, key, value, gradients[0]))
            dropped, to_weights = weights, torch.bmm(gradient, v.transpose(1, 2))
            if ctx.probability:
                seed = ctx.seeds[number]
                dropped = seeded_dropout(weights, seed, ctx.probability)
                to_weights = seeded_dropout(to_weights, seed, ctx.probability)
            to_scores = torch._softmax_backward_data(to_weights, weights, -1, weights.dtype)
            _put(to_value, torch.bmm(dropped.transpose(1, 2), gradient), block)
            _put(to_query, torch.bmm(to_scores, k.mul_(_scale(query))), block)
            _put(to_key, torch.bmm(to_scores.transpose(1, 2), q.mul_(_scale(query))), block)
        return to_query, to_key, to_value, None, None


def _scale(query: Tensor) -> float:
    return 1.0 / math.sqrt(query.size(-1))


def _padded(tensor: Tensor, block: Block) -> Tensor:
    """[T, heads, D] -> the block's sequences [b x heads, L, D], contiguous, zeros behind each."""
    num_heads, size = tensor.shape[1:]
    padded = tensor.new_empty(len(block.sequences), num_heads, block.length, size)
    for one, rows in _rows_of(padded, block):
        one.copy_(tensor[rows].transpose(0, 1))
    for one, (_, length) in zip(padded, block.sequences, strict=True):
        if length < block.length:
            one[:, length:].zero_()
    return padded.flatten(0, 1)


def _put(out: Tensor, padded: Tensor, block: Block) -> None:
    """Copies the real rows of `padded` [b x heads, L, D] to their places in out [T, heads, D]."""
    for one, rows in _rows_of(padded.unflatten(0, (len(block.sequences), -1)), block):
        out[rows].copy_(one.transpose(0, 1))


def _rows_of(padded: Tensor, block: Block) -> Iterator[tuple[Tensor, slice]]:
    """(real part [heads, length, D] of each sequence of padded [b, heads, L, D], its tokens)."""
    for one, (start, length) in zip(padded, block.sequences, strict=True):
        yield one[:, :length], slice(start, start + length)


def _softmax_of_real_keys(scores: Tensor, block: Block) -> Tensor:
    """Softmax of scores [b x heads, L, L], which are overwritten, over the keys that are no padding."""
    for one, (_, length) in zip(scores.unflatten(0, (len(block.sequences), -1)), block.sequences, strict=True):
        if length < block.length:
            one[..., length:].fill_(-math.inf)
    return torch.softmax(scores, dim=-1)
