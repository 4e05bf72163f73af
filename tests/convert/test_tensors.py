"""The QKV layout and the vocabulary padding, by hand."""

import pytest
import torch

from megatron_alum.convert.tensors import copy_vocabulary_shard, merge_qkv, shard, split_qkv, strip_vocabulary


def rows(*values):
    """A column of these numbers."""
    return torch.tensor(values)[:, None].float()


def test_qkv_of_two_heads_of_two_rows_by_hand():
    # head 0 has rows 0, 1 and head 1 rows 2, 3 of each matrix; Megatron wants q k v of head 0, then of head 1.
    query, key, value = rows(10, 11, 12, 13), rows(20, 21, 22, 23), rows(30, 31, 32, 33)
    merged = merge_qkv(query, key, value, num_heads=2)
    assert merged.flatten().tolist() == [10, 11, 20, 21, 30, 31, 12, 13, 22, 23, 32, 33]
    # Tensor parallelism cuts between the heads: rank 1 holds all of head 1.
    assert shard(merged, 0, tp_rank=1, tp_size=2).flatten().tolist() == [12, 13, 22, 23, 32, 33]


@pytest.mark.parametrize("trailing", [(), (7,)], ids=["bias", "weight"])
@pytest.mark.parametrize("num_heads", [1, 3, 6])
def test_split_undoes_merge(num_heads, trailing):
    parts = [torch.randn(12, *trailing) for _ in range(3)]
    merged = merge_qkv(*parts, num_heads=num_heads)
    assert merged.shape == (36, *trailing)
    for part, again in zip(parts, split_qkv(merged, num_heads=num_heads), strict=True):
        assert torch.equal(part, again) and again.is_contiguous()


def test_padding_is_zero_rows_and_is_stripped():
    table = torch.arange(6.0).reshape(3, 2) + 1
    # Two ranks of three rows, two ranks of two, four ranks of two: the last ones hold nothing but padding.
    for tp_size, expected in (
        (2, [[[1, 2], [3, 4], [5, 6]], [[0, 0]] * 3]),
        (4, [[[1, 2], [3, 4]], [[5, 6], [0, 0]], [[0, 0]] * 2, [[0, 0]] * 2]),
        (1, [[[1, 2], [3, 4], [5, 6]]]),
    ):
        shards = [torch.full((len(expected[0]), 2), 9.0) for _ in range(tp_size)]
        for rank, target in enumerate(shards):
            copy_vocabulary_shard(target, table, tp_rank=rank)
        assert [target.tolist() for target in shards] == expected
        assert torch.equal(strip_vocabulary(torch.cat(shards), 3), table)


def test_shard_follows_the_dimension():
    matrix = torch.arange(8.0).reshape(2, 4)
    assert shard(matrix, 1, tp_rank=1, tp_size=2).tolist() == [[2, 3], [6, 7]]
    assert shard(matrix, 0, tp_rank=0, tp_size=2).tolist() == [[0, 1, 2, 3]]
    assert shard(matrix, None, tp_rank=1, tp_size=2) is matrix
