"""Allocator settings, told by the page faults of a block that is allocated and filled again and again."""

import subprocess
import sys

import pytest

MEGABYTES, TURNS = 48, 10
PAGES = (MEGABYTES << 20) // 4096

FAULTS = f"""
import resource, sys
import torch
from megatron_alum.compat import allocator
torch.set_num_threads(1)
if sys.argv[1] != "default":
    assert getattr(allocator, sys.argv[1])()
def turn(megabytes):
    torch.ones(megabytes << 18)
turn({MEGABYTES})
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({TURNS}):
    turn({MEGABYTES}), turn(2)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator is Linux's")
def test_kept_memory_is_not_faulted_in_again():
    faults = {}
    for setting in ("keep_freed_memory", "return_freed_memory", "default"):
        done = subprocess.run([sys.executable, "-c", FAULTS, setting], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]
        faults[setting] = int(done.stdout)
    # Large pages, where the system gives them, would make the other two's counts small as well.
    if faults["default"] < PAGES:
        pytest.skip("this system maps large pages by itself")
    assert faults["keep_freed_memory"] < PAGES / 10
    assert faults["return_freed_memory"] >= TURNS * (PAGES + 512)  # the block of 2 MB, too
