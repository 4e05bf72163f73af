"""What glibc's allocator does with freed memory: kept for a CPU step's next one, or given back at once.

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


def return_freed_memory() -> bool:
    """Tells glibc's allocator to map every block of a megabyte or more on its own and to unmap it when it is freed.

    By default it learns from the first large blocks to keep their like, and tensors of different sizes leave holes: a
    converter of BERT-base then peaks at 1.0 to 1.2 GB, differently in each run (measured). Returns whether it did.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return mallopt is not None and bool(mallopt(_M_MMAP_THRESHOLD, 1 << 20))
