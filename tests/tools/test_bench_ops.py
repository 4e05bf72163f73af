"""The benchmark of the ops runs at toy size, writes every contestant into its CSV and keeps the profiler quiet."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_alum import ops

ROOT = Path(__file__).resolve().parents[2]


def test_table_and_csv(tmp_path):
    if not ops.build_info()["built"]:
        pytest.skip(ops.build_info()["reason"])
    output = tmp_path / "ops.csv"
    size = ["--rows", "8", "--vocab", "200", "--tokens", "32", "--repeats", "2", "--threads", "1", "--quick"]
    command = [sys.executable, "tools/bench_ops.py", *size, "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "USDT" not in done.stdout + done.stderr
    rows = list(csv.DictReader(output.open()))
    for dtype in ("float32", "bfloat16"):
        found = {(row["op"], row["contestant"]) for row in rows if row["dtype"] == dtype}
        assert ("symmetric_kl, value and both gradients", "ours, weighted sum, overwritten") in found
        assert ("MLM loss, value and gradient", "ours, weighted sum, overwritten") in found
        assert ("perturb_embeddings", "ours, random start") in found
    heads = {row["contestant"]: int(row["extra_bytes"]) for row in rows if row["op"] == "MLM head with both losses"}
    assert {"eager", "ours, whole", "ours, chunks of 4", "ours, chunks of 2", "ours, chunks of 1"} == set(heads)
    assert all(float(row["median_ms"]) > 0 and row["commit"] for row in rows)


def test_overwriting_allocates_nothing_of_logit_size(tmp_path):
    if not ops.build_info()["built"]:
        pytest.skip(ops.build_info()["reason"])
    output = tmp_path / "ops.csv"
    size = ["--rows", "64", "--vocab", "4096", "--tokens", "32", "--repeats", "1", "--threads", "1", "--quick"]
    command = [sys.executable, "tools/bench_ops.py", *size, "--output", str(output)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    rows = list(csv.DictReader(output.open()))
    overwritten = [row for row in rows if "overwritten" in row["contestant"]]
    assert len(overwritten) == 6
    for row in overwritten:  # one logit tensor is 64 x 4096 elements
        assert int(row["extra_bytes"]) < 64 * 4096 * (4 if row["dtype"] == "float32" else 2) / 10
    heads = {row["contestant"]: int(row["extra_bytes"]) for row in rows if row["op"] == "MLM head with both losses"}
    whole, half, quarter = heads["ours, whole"], heads["ours, chunks of 32"], heads["ours, chunks of 16"]
    assert whole > half > quarter
