"""Allocator settings, observed through the page faults of a block that is allocated and filled repeatedly."""

import subprocess
import sys

import pytest

TURNS = 10
PAGES_OF_A_MEGABYTE = 256

FAULTS = f"""
import resource, sys
import torch
from megatron_alum.ops import allocator
torch.set_num_threads(1)
if sys.argv[1] != "default":
    assert getattr(allocator, sys.argv[1])()
for megabytes in (4, 48):
    torch.ones(megabytes << 18)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range({TURNS}):
        torch.ones(megabytes << 18)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / {TURNS * PAGES_OF_A_MEGABYTE} / megabytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator is Linux's")
def test_memory_is_kept_or_returned():
    """Shares of a block of 4 and of 48 MB that are faulted in again; glibc by itself comes to keep up to 32."""
    shares = {}
    for setting in ("default", "keep_freed_memory", "return_freed_memory"):
        done = subprocess.run([sys.executable, "-c", FAULTS, setting], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]
        shares[setting] = [float(line) for line in done.stdout.split()]
    if shares["default"][1] < 0.9:
        pytest.skip("this system maps large pages by itself, which no count of faults can tell from kept memory")
    assert shares["keep_freed_memory"][1] < 0.5
    assert min(shares["return_freed_memory"]) > 0.9
