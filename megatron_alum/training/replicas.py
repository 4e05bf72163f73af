"""Whether the data-parallel replicas still hold the same weights, bit for bit: a broken GPU or a lost reduction makes
them drift apart, and no loss shows it.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_alum.models import SplitBert

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_MULTIPLIER = 6_364_136_223_846_793_005  # Knuth's, for a linear congruential generator modulo 2^64


def weight_hashes(model: SplitBert) -> Tensor:
    """int64 [parameters] on the device: changes with any bit of a parameter, and when two of its numbers swap."""
    return torch.stack([_hash(parameter.detach()) for parameter in model.parameters()])


def check_replicas(model: SplitBert, group: dist.ProcessGroup, *, iteration: int) -> None:
    """Compare the weights over the data-parallel `group`. Collective; the host waits for the device.

    Raises: ValueError on every rank of a group whose replicas differ, naming the first parameter that does.
    """
    hashes = weight_hashes(model)
    lowest, highest = hashes.clone(), hashes.clone()
    dist.all_reduce(lowest, op=dist.ReduceOp.MIN, group=group)
    dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=group)
    differs = (lowest != highest).tolist()
    if any(differs):
        names = [name for (name, _), found in zip(model.named_parameters(), differs, strict=True) if found]
        raise ValueError(
            f"All data-parallel replicas must hold the same weights, but after iteration {iteration} {len(names)} of "
            f"{len(differs)} parameters differ, first `{names[0]}`. Look for a faulty device, and continue from a "
            "checkpoint before the last check with --load."
        )


def _hash(values: Tensor) -> Tensor:
    """0-dim int64; sums modulo 2^64, so no order of summation changes it."""
    bits = values.contiguous().view(_BITS[values.element_size()]).flatten().to(torch.int64)
    places = torch.arange(1, len(bits) + 1, device=bits.device).mul_(_MULTIPLIER).bitwise_or_(1)
    return places.mul_(bits).sum()  # not into `bits`, which may be the weights themselves
