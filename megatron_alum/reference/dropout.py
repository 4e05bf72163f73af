"""Dropout in plain torch, bit-equal to csrc/ops/dropout.h, which says how the mask follows from seed and position."""

import torch
from torch import Tensor

LEVELS = 2**16
"""The dropping probability is a multiple of 1 / LEVELS."""
_FIELDS = 4  # of 16 bits in a word
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX = (30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64)


def dropout(x: Tensor, seed: Tensor, threshold: int) -> Tensor:
    """x with elements dropped with probability threshold / LEVELS and the rest scaled up; seed int64 0-dim."""
    words = splitmix64(seed.to(x.device), -(-x.numel() // _FIELDS))
    fields = torch.stack([words >> 16 * field & LEVELS - 1 for field in range(_FIELDS)], dim=1).view(-1)
    keep = (fields[: x.numel()] >= threshold).view(x.shape)
    work = torch.promote_types(x.dtype, torch.float32)
    # In float32, like the kernel.
    scale = torch.tensor(LEVELS / (LEVELS - threshold), dtype=torch.float32, device=x.device).to(work)
    return (x.to(work) * (keep * scale)).to(x.dtype)


def splitmix64(seed: Tensor, count: int) -> Tensor:
    """The first words of a seed's sequence, int64 [count]; sums and products wrap, shifts are logical."""
    z = seed + torch.arange(1, count + 1, device=seed.device) * _GOLDEN
    for shift, factor in _MIX:
        z = (z ^ _shifted(z, shift)) * factor
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, bits: int) -> Tensor:
    return z >> bits & 2 ** (64 - bits) - 1
