"""The step table on a network of a few thousand weights: the same code that measures BERT-base on a GPU."""

import csv
import subprocess
import sys

import pytest

from megatron_alum.training.flops import passes
from tools import bench_step

TINY = "--model-size tiny --seq-length 16 --micro-batch-size 4 --vocab-size 300 --steps 1 --rounds 1".split()


def test_table_of_a_tiny_network(tmp_path):
    output = tmp_path / "steps.csv"
    command = [sys.executable, bench_step.__file__, *TINY, "--only", "standard, 2", "K=1", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    with output.open(newline="") as stream:
        rows = {row["step"]: row for row in csv.DictReader(stream)}
    assert list(rows) == [bench_step.STOCK, "alum K=1", "standard, 2 processes"]
    for name, row in rows.items():
        processes = 2 if "2 processes" in name else 1
        assert int(row["processes"]) == processes
        samples = 4 * processes / float(row["seconds"])
        assert float(row["samples_per_second"]) == pytest.approx(samples, rel=0.05)
        assert (row["tflops"] == "") == (name == bench_step.STOCK)
    stock, alum = rows[bench_step.STOCK], rows["alum K=1"]
    assert float(stock["ratio_to_stock"]) == 1.0
    assert float(alum["ratio_to_stock"]) == pytest.approx(float(alum["seconds"]) / float(stock["seconds"]), rel=0.05)
    assert alum["ratio_to_standard"] == "", "the standard step was not asked for"


def test_operations_of_a_row_follow_its_options():
    arguments = bench_step.parse_arguments(list(TINY))
    config = bench_step._config(arguments, bench_step.VARIANTS["standard"])
    hidden, layers, tokens, ffn = 128, 2, 16, 512  # preset tiny
    layer = 2 * tokens * (4 * hidden * hidden + 2 * hidden * ffn) + 4 * tokens * tokens * hidden
    head = 2 * 0.15 * tokens * (hidden * hidden + hidden * 300)
    unread = tokens - 0.15 * tokens - 1  # by the heads: the last MLP leaves them out
    spared = 2 * unread * 2 * hidden * ffn
    assert bench_step.step_flops(arguments, config) == pytest.approx(4 * (layers * layer - spared + head))
    counts = {name: passes(bench_step._config(arguments, bench_step.VARIANTS[name]), "alum") for name in ALUM_PASSES}
    assert counts == ALUM_PASSES


ALUM_PASSES = {"alum K=1": 8, "alum K=2": 10, "alum half of the batch": 5.5, "alum free": 6}


def test_words_choose_rows_and_stock_is_always_there():
    assert bench_step.chosen(["recompute"]) == [
        bench_step.STOCK,
        "alum recompute full",
        "standard recompute full",
    ]
    assert bench_step.chosen([]) == list(bench_step.VARIANTS)


def test_the_fastest_round_counts(tmp_path, monkeypatch):
    """Two rounds: 3 s and 2 s, of which 2 s is written, with the memory of that round."""
    measured = iter([bench_step.Measured(seconds, 1e6 * seconds, 2, None) for seconds in (8.0, 3.0, 5.0, 2.0)])
    monkeypatch.setattr(bench_step, "run_variant", lambda *_: next(measured))
    output = tmp_path / "steps.csv"
    monkeypatch.setattr(sys, "argv", ["bench_step.py", "--rounds", "2", "--only", "K=1", "--output", str(output)])
    bench_step.main()
    rows = {row["step"]: row for row in csv.DictReader(output.open())}
    assert rows["alum K=1"]["seconds"] == "2.0000" and rows["alum K=1"]["ratio_to_stock"] == "0.400"
    assert rows["alum K=1"]["peak_memory_mb"] == "2"
