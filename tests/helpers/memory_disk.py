"""Temporary folders in memory where the machine has room for them.

Checkpoints and shards are flushed to the disk before they count as written, which takes a real disk tens of
milliseconds each time: half of the suite's time was spent waiting for it. What is written, and in which order, is the
same in memory. PYTEST_DEBUG_TEMPROOT, pytest's own variable, chooses another place.
"""

import os
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
NEEDED_BYTES = 4 * 2**30
"""a run of the whole suite keeps less than 1 GiB at a time"""


def has_room(folder: Path) -> bool:
    """Whether temporary folders fit there: space, permission to write, and compiled code can be loaded from it."""
    if not os.access(folder, os.W_OK):
        return False
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize >= NEEDED_BYTES and not found.f_flag & os.ST_NOEXEC


def use() -> None:
    """Let pytest put its temporary folders into memory, unless there is no room or another place is asked for."""
    if has_room(SHARED_MEMORY):
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(SHARED_MEMORY))
