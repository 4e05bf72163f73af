"""The optimizer's state as checkpoints hold it: one tensor of a parameter's shape for its master weights and for each
moment, whatever layout wrote them.

The distributed optimizer cuts a flat buffer into one shard for each data-parallel rank, without regard to parameters.
megatron-core turns that into the stored form by gathering the whole state on the host of every rank. Here each rank
describes its own shard: a range of a parameter's elements in row-major order is at most one rectangle for every
dimension before the last and two more for the ends (`rectangles`), and the checkpoint format stores rectangles. They
are views of the optimizer's own tensors, so a save copies nothing, every rank writes its share, and a load reads that
share into place. The names and shapes are megatron-core's `fully_reshardable` ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor

STATES = ("param", "exp_avg", "exp_avg_sq")
"""what is stored of a parameter: master weights and Adam's moments"""


def to_save(optimizer: MegatronOptimizer, model: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint stores of the optimizer; `model` holds the ShardedTensors of the parameters."""
    (part,) = optimizer.chained_optimizers
    if not isinstance(part, DistributedOptimizer):
        values: dict[str, Any] = optimizer.sharded_state_dict(model)
        return values
    kind = {"param_state_sharding_type": "fully_reshardable"}  # for stock megatron-core
    return {**part.state_dict(), "param_state": own_tensors(part, model), **kind}


def own_tensors(part: DistributedOptimizer, model: dict[str, Any]) -> dict[str, Any]:
    """The tensors in this rank's shard, {number of the parameter: {state: [ShardedTensor, ...]}}, all of them views."""
    whole = {id(entry.data): entry for entry in nested_values(model)}
    tensors: dict[str, Any] = {}
    for number, (parameter, span) in enumerate(_own_ranges(part)):
        states, entry = part._get_main_param_and_optimizer_states(parameter), whole[id(parameter)]
        tensors[str(number)] = {state: list(_pieces(states[state], entry, state, span)) for state in STATES}
    return tensors


def rectangles(shape: tuple[int, ...], start: int, end: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(offset, size) of boxes that make up the elements [start, end) of an array of `shape` in C order, in that order.

    Each box is contiguous there.
    """
    if start >= end:
        return
    if len(shape) == 1:
        yield (start,), (end - start,)
        return
    row = math.prod(shape[1:])
    first, last = -(-start // row), end // row  # whole rows
    if first > last:  # within one row
        yield from _in_row(shape, start // row, start % row, end % row)
        return
    if start % row:
        yield from _in_row(shape, first - 1, start % row, row)
    if first < last:
        yield (first, *(0 for _ in shape[1:])), (last - first, *shape[1:])
    if end % row:
        yield from _in_row(shape, last, 0, end % row)


def _in_row(
    shape: tuple[int, ...], row: int, start: int, end: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    for offset, size in rectangles(shape[1:], start, end):
        yield (row, *offset), (1, *size)


def _pieces(flat: Tensor, entry: ShardedTensor, state: str, span: range) -> Iterator[ShardedTensor]:
    """`flat` [len(span)], the numbers `span` of the parameter that `entry` describes, as pieces of the stored
    tensor."""
    assert flat.numel() == len(span), (entry.key, flat.shape, span)
    done, (copy_id, tensor_rank, _) = 0, entry.replica_id
    stacked = entry.prepend_axis_num  # megatron-core stores the same parameter of all layers as one tensor
    for offset, size in rectangles((1,) * stacked + tuple(entry.local_shape), span.start, span.stop):
        count = math.prod(size)
        yield replace(
            entry,
            key=f"optimizer.state.{state}.{entry.key}",
            data=flat.detach()[done : done + count].view(size),
            dtype=flat.dtype,
            local_shape=size,
            global_offset=tuple(a + b for a, b in zip(entry.global_offset, offset, strict=True)),
            axis_fragmentations=None,  # no regular grid
            prepend_axis_num=0,
            replica_id=(copy_id, tensor_rank, 0),  # no other data-parallel rank holds it
        )
        done += count


def _own_ranges(part: DistributedOptimizer) -> Iterator[tuple[torch.nn.Parameter, range]]:
    """The parameters that overlap with this rank's shard, and which of their numbers lie in it."""
    for buffers in part.gbuf_ranges:
        for buckets in buffers.values():
            for bucket in buckets:
                for parameter, ranges in bucket["param_map"].items():
                    yield parameter, range(ranges["param"].start, ranges["param"].end)
