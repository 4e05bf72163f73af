"""Keeps the memory that a CPU step frees for the next step.

glibc gives freed blocks of many megabytes back to the system, so every step faults all its activations and logits in
again, 4 KB at a time: on a 4-layer, 256-wide BERT that is 55,000 faults and a fifth of the step (measured). A training
step asks for the same sizes again and again, so the freed memory is kept; the process holds about 5 % more.
"""

import ctypes
import sys

import torch

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_LARGEST_KEPT_BYTES = 1 << 30  # larger blocks come from the system, and go back
_GROWTH_BYTES = 64 << 20


def keep_freed_memory() -> bool:
    """Tells glibc's allocator to keep what is freed, for the rest of the process; returns whether it did.

    Does nothing where CUDA is available (torch keeps the GPU's memory by itself) or where the C library has no mallopt.
    """
    if torch.cuda.is_available() or sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_M_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, _GROWTH_BYTES))
    return all(mallopt(name, value) for name, value in settings)
