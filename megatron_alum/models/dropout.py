"""Dropout that does not dominate a step on the CPU.

torch's CPU dropout draws one Bernoulli variable an element, about 9 ns forward and backward: a seventh of a small
BERT's step. Here a 64-bit draw serves four elements, 3 ns (both measured on 2^20 elements, one thread). The dropping
probability is therefore a multiple of 2^-16, and the scale is that of the probability really used. CUDA takes torch's
own kernel. Both draw from torch's default generator, which megatron-core's RNG tracker swaps in tensor-parallel
regions.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_LEVELS = 2**16
_ELEMENTS_PER_DRAW = 4


def dropout(x: Tensor, probability: float, *, training: bool) -> Tensor:
    """`x` with each element zeroed with `probability` and the rest scaled up; the same tensor when not training."""
    if not training or probability == 0.0:
        return x
    if x.is_cuda:
        return F.dropout(x, probability)
    return _CpuDropout.apply(x, probability)


def _keep_mask(shape: torch.Size, threshold: int) -> Tensor:
    """int8 [shape]: 0 with probability threshold / 2^16, else 1 (multiplying by bool takes four times as long)."""
    num_draws = (shape.numel() + _ELEMENTS_PER_DRAW - 1) // _ELEMENTS_PER_DRAW
    bits = torch.empty(num_draws, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    return (bits[: shape.numel()] >= threshold - _LEVELS // 2).view(torch.int8).view(shape)


class _CpuDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, probability: float) -> Tensor:
        threshold = max(1, round(probability * _LEVELS))
        ctx.scale = _LEVELS / (_LEVELS - threshold)
        keep = _keep_mask(x.shape, threshold)
        ctx.save_for_backward(keep)
        return x.mul(keep).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return gradients[0].mul(keep).mul_(ctx.scale), None
