"""The columns that say where a measurement comes from."""

import os
import subprocess
from pathlib import Path

from megatron_alum.compat import machine

ROOT = Path(__file__).parents[2]


def test_the_processor_has_a_name_and_cores():
    name, _, cores = machine.processor_name().rpartition(" (")
    assert name and cores == f"{os.cpu_count()} cores)"


def test_the_commit_is_that_of_the_checkout(monkeypatch):
    git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    expected = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    assert machine.current_commit() == (expected or "unknown")
    monkeypatch.setenv("PATH", "")
    assert machine.current_commit() == "unknown"
