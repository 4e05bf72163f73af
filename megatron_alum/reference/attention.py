"""Attention within sequences in plain torch, with the masks of csrc/ops/attention.cpp."""

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_alum.reference.dropout import dropout, splitmix64


def attention(
    query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], seed: Tensor, threshold: int
) -> Tensor:
    """softmax(q k^T / sqrt(D)) v of each sequence, [T, heads, D], its weights dropped with probability threshold /
    LEVELS; zeros behind the sequences. Differentiable to any order.
    """
    seeds = iter(splitmix64(seed, len(lengths) * query.size(1)))
    contexts, begin = [], 0
    for length in lengths:
        q, k, v = (tensor[begin : begin + length].transpose(0, 1) for tensor in (query, key, value))
        weights = torch.softmax(q @ k.transpose(1, 2) * query.size(-1) ** -0.5, dim=-1)
        if threshold:
            weights = torch.stack([dropout(of_head, next(seeds), threshold) for of_head in weights])
        contexts.append((weights @ v).transpose(0, 1))
        begin += length
    return torch.cat([*contexts, torch.zeros_like(value[begin:])])
