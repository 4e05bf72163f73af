"""The two tensor rewrites of the conversion: the QKV layout and the padded vocabulary.

megatron-core keeps query, key and value of one head side by side, so that tensor parallelism cuts between heads:
rows [q0 k0 v0 q1 k1 v1 ...], each block `head_size` rows. Hugging Face keeps three matrices [q0 q1 ...], [k0 k1 ...],
[v0 v1 ...]. Megatron pads the vocabulary to a multiple of `make_vocab_size_divisible_by * tp` rows, which are never
tokens; the padding is dropped on export and written as zeros on import. Letters as in `keys.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def merge_qkv(query: Tensor, key: Tensor, value: Tensor, *, num_heads: int) -> Tensor:
    """[H, ...] query, key and value (weights [H, H] or biases [H]) as Megatron's [3H, ...]."""
    per_head = [part.reshape(num_heads, -1, *part.shape[1:]) for part in (query, key, value)]
    return torch.cat(per_head, dim=1).reshape(3 * query.shape[0], *query.shape[1:])


def split_qkv(merged: Tensor, *, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """The inverse of `merge_qkv`: three contiguous tensors [H, ...] from [3H, ...]."""
    per_head = merged.reshape(num_heads, 3, -1, *merged.shape[1:])
    query, key, value = (
        per_head[:, part].reshape(merged.shape[0] // 3, *merged.shape[1:]).contiguous() for part in range(3)
    )
    return query, key, value


def strip_vocabulary(padded: Tensor, vocab_size: int) -> Tensor:
    """The first `vocab_size` rows of a padded [Vp * tp, ...]; a view."""
    return padded[:vocab_size]


def copy_vocabulary_shard(target: Tensor, whole: Tensor, *, tp_rank: int) -> None:
    """Fill tensor-parallel rank `tp_rank`'s rows `target` [Vp, ...] from the unpadded table [V, ...]; padding gets 0.

    No padded table is created in between: the word table is the largest tensor by far.
    """
    part = whole[tp_rank * len(target) :][: len(target)]
    target[: len(part)].copy_(part)
    target[len(part) :].zero_()


def shard(tensor: Tensor, split: int | None, *, tp_rank: int, tp_size: int) -> Tensor:
    """The part of a whole tensor that tensor-parallel rank `tp_rank` holds; a view."""
    if split is None or tp_size == 1:
        return tensor
    assert tensor.shape[split] % tp_size == 0, f"dimension {split} of {tuple(tensor.shape)} by {tp_size}"
    return tensor.chunk(tp_size, dim=split)[tp_rank]
