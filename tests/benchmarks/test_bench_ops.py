"""The benchmark of the ops at toy size: all contestants in its CSV, no output from the profiler, memory as promised."""

import csv

import pytest

from megatron_alum import ops
from tests.helpers.warm import run_script

ROWS, VOCAB = 64, 4096


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """(rows of the CSV, everything printed)."""
    if not ops.build_info()["built"]:
        pytest.skip(ops.build_info()["reason"])
    output = tmp_path_factory.mktemp("bench") / "ops.csv"
    size = ["--rows", str(ROWS), "--vocab", str(VOCAB), "--tokens", "32", "--repeats", "1", "--threads", "1", "--quick"]
    done = run_script("benchmarks/bench_ops.py", *size, "--output", output)
    assert done.returncode == 0, done.stderr[-2000:]
    return list(csv.DictReader(output.open())), done.stdout + done.stderr


def test_every_contestant_is_in_the_table(measured):
    rows, printed = measured
    for dtype in ("float32", "bfloat16"):
        found = {(row["op"], row["contestant"]) for row in rows if row["dtype"] == dtype}
        assert ("symmetric_kl, value and both gradients", "ours, weighted sum, overwritten") in found
        assert ("MLM loss, value and gradient", "ours, weighted sum, overwritten") in found
        assert ("perturb_embeddings", "ours, random start") in found
        assert ("dropout, value and gradient", "ours") in found
    assert all(float(row["median_ms"]) > 0 and row["commit"] for row in rows)
    assert "USDT" not in printed


def test_overwriting_allocates_nothing_of_logit_size(measured):
    overwritten = [row for row in measured[0] if "overwritten" in row["contestant"]]
    assert len(overwritten) == 6
    for row in overwritten:
        assert int(row["extra_bytes"]) < ROWS * VOCAB * (4 if row["dtype"] == "float32" else 2) / 10


def test_memory_of_the_chunked_head_shrinks_with_the_chunk(measured):
    heads = {row["contestant"]: int(row["extra_bytes"]) for row in measured[0] if row["op"].startswith("MLM head")}
    whole, half, quarter = (heads[f"ours, {name}"] for name in ("whole", "chunks of 32", "chunks of 16"))
    assert heads["eager"] > whole > half > quarter
