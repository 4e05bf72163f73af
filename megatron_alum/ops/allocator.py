"""What glibc's allocator does with freed memory: returned at once where a tool's peak memory matters, kept where only
the time of an op does.
"""

import ctypes
import sys

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_INT = 2**31 - 1


def return_freed_memory() -> bool:
    """Map every block of a megabyte or more on its own and unmap it when it is freed; returns whether this was done.

    By default glibc keeps blocks of the sizes that were freed before, and tensors of different sizes leave holes:
    a converter of BERT-base then peaks at 1.0 to 1.2 GB, differently in each run (measured).
    """
    return _mallopt(_M_MMAP_THRESHOLD, 1 << 20)


def keep_freed_memory() -> bool:
    """Keep every freed block for the next allocation of this process; returns whether this was done.

    For benchmarks of ops: by default large blocks are requested from the system again in each call, and faulting in
    their pages takes longer than most ops on them. Not for training, whose blocks differ in size from step to step and
    could not reuse each other's space.
    """
    return _mallopt(_M_MMAP_THRESHOLD, _LARGEST_INT) and _mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT)


def _mallopt(name: int, value: int) -> bool:
    """glibc's mallopt(3); False on systems without it."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return mallopt is not None and bool(mallopt(name, value))
