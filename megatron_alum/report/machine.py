"""Which machine and which commit a measurement belongs to: two columns of every benchmark table."""

import os
import platform
import subprocess
from pathlib import Path


def processor_name() -> str:
    """Model and number of cores, as far as the system says."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.machine()
    return f"{name} ({os.cpu_count()} cores)"


def current_commit() -> str:
    """Short hash of the checkout this package lies in; "unknown" where it is installed, in whatever repository."""
    if not _git("ls-files", Path(__file__).name):
        return "unknown"
    return _git("rev-parse", "--short", "HEAD") or "unknown"


def _git(*words: str) -> str:
    """What git prints in this package's folder; "" where it fails or is absent."""
    try:
        run = subprocess.run(["git", "-C", str(Path(__file__).parent), *words], capture_output=True, text=True)
    except OSError:
        return ""
    return run.stdout.strip()
