"""Whether the processor computes in bfloat16 at speed, and what to say where it does not."""

from __future__ import annotations

import sys

import torch


def has_bf16_instructions() -> bool:
    """Whether the device has bfloat16 instructions: any GPU that torch sees, a CPU with AVX512-BF16 or AMX."""
    return torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def warn_where_bf16_is_slow(bf16: bool) -> None:
    """Say on stderr what a run with `bf16` costs on a machine without such instructions.

    The hundredfold is that of torch 2.13's matrix product, [1024, 384] by [384, 1536], on an AVX2 processor.
    """
    if bf16 and not has_bf16_instructions():
        slower = "slower than" if torch.cpu._is_avx512_supported() else "up to a hundred times slower than"
        text = f"--bf16: this CPU has no bfloat16 instructions; a step is {slower} in float32. Leave --bf16 out."
        print(text, file=sys.stderr, flush=True)
