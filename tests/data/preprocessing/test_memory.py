"""Bounded memory: a 200 MB line, and a corpus many times larger than what a run may hold, in fresh processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.preprocessing.corpora import left_behind, write_vocab

ROOT = Path(__file__).parents[3]
MAX_COORDINATOR_MB = 1000
MAX_WORKER_MB = 300
# Runs the tool and prints the peak resident memory of this process and the largest of its workers, in MB.
PROBE = """
import pathlib, resource, runpy, sys
try:
    sys.argv[0] = "tools/preprocess_data.py"
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    status = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
    own = int(status["VmHWM"].split()[0])  # ru_maxrss would count the process that started this one
    print("peaks", own // 1024, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024, file=sys.stderr)
"""


def run(folder, source):
    """(exit status, stderr, peak MB of the coordinator, peak MB of the largest worker)."""
    probe = folder / "probe.py"
    probe.write_text("if __name__ == '__main__':\n" + "\n".join("    " + line for line in PROBE.splitlines()) + "\n")
    command = [sys.executable, str(probe), "--input", str(source), "--output-prefix", str(folder / "out")]
    command += ["--vocab-file", str(write_vocab(folder)), "--workers", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=1200)
    peaks = [int(word) for word in done.stderr.rpartition("peaks ")[2].split()]
    return done.returncode, done.stderr, *peaks


@pytest.mark.slow
@pytest.mark.parametrize("name", ["in.txt", "in.jsonl"])
def test_a_line_of_200_mb(tmp_path, name):
    """It is one document, too long: passed over, named in the report, and without others the run is an error."""
    source = tmp_path / name
    with source.open("wb") as stream:
        stream.write(b'{"text": "' if name == "in.jsonl" else b"")
        for _ in range(200):
            stream.write(b"the cat " * 125_000)
    status, errors, coordinator, worker = run(tmp_path, source)
    assert status == 2 and "1 with longer than 16 MiB" in errors and "Traceback" not in errors
    assert coordinator < MAX_COORDINATOR_MB and worker < MAX_WORKER_MB
    assert left_behind(tmp_path, keep={name, "vocab.txt", "probe.py"}) == []


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tmp_path):
    """300 MB of ever new words: the word cache fills and stays within its bound."""
    source = tmp_path / "in.jsonl"
    with source.open("w") as stream:
        for i in range(60_000):
            words = " ".join(f"w{(i * 101 + j * 7919) % 5_000_000}" for j in range(600))
            stream.write(json.dumps({"text": words + "."}) + "\n")
    status, errors, coordinator, worker = run(tmp_path, source)
    assert status == 0, errors
    assert coordinator < MAX_COORDINATOR_MB and worker < MAX_WORKER_MB
