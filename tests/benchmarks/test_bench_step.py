"""The step table on a network of a few thousand weights: the same code that measures BERT-base on a GPU."""

import csv
import sys

import pytest
import torch

from benchmarks import bench_step
from benchmarks.batches import one_micro_batch, padded_rows
from tests.helpers import warm

TINY = "--model-size tiny --seq-length 16 --micro-batch-size 4 --vocab-size 300 --steps 1 --rounds 1".split()


def test_table_of_a_tiny_network(tmp_path, monkeypatch):
    output = tmp_path / "steps.csv"
    monkeypatch.setattr(bench_step.multiprocessing, "get_context", lambda method: warm.context())
    words = ["bench_step.py", *TINY, "--only", "standard, 2", "K=1", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", words)
    bench_step.main()
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


def test_the_batch_of_full_rows_is_what_it_says():
    arguments = bench_step.parse_arguments(list(TINY))
    config = bench_step.configuration(arguments, bench_step.VARIANTS["alum half of the batch"])
    batches = one_micro_batch(arguments, config)
    (batch,) = batches.micro_batches
    assert batch.lengths == (16,) * 4 and batch.num_adversarial == 2
    counts = batches.counts
    assert (counts.tokens, counts.squared_lengths, counts.masked, counts.adversarial_masked) == (64, 1024, 8, 4)
    tokens, types, is_real, labels = padded_rows(batch, 16)
    assert torch.equal(tokens.flatten(), batch.tokens) and bool(is_real.all())
    assert torch.equal(labels.flatten()[batch.masked_positions], batch.masked_labels)
    assert int((labels >= 0).sum()) == 8 and torch.equal(types.flatten(), batch.token_types)


def test_real_text_is_one_of_sixteen_equal_micro_batches(prefix):
    """All contestants get the same samples: stock as padded rows, ours without padding."""
    arguments = bench_step.parse_arguments([*TINY[:2], "--seq-length", "48", "--data", prefix])
    config = bench_step.configuration(arguments, bench_step.VARIANTS["alum K=1"])
    (batch,) = one_micro_batch(arguments, config).micro_batches
    assert 12 <= batch.num_sequences <= 20 and max(batch.lengths) <= 48
    tokens, _, is_real, _ = padded_rows(batch, 48)
    assert is_real.sum(1).tolist() == list(batch.lengths)
    assert torch.equal(tokens[is_real.bool()], batch.tokens[: batch.num_tokens])


def test_words_choose_rows_and_stock_is_always_there():
    assert bench_step.chosen(["recompute"]) == [
        bench_step.STOCK,
        "alum recompute full",
        "standard recompute full",
    ]
    assert bench_step.chosen([]) == list(bench_step.VARIANTS)


def test_the_fastest_round_counts(tmp_path, monkeypatch):
    """Two rounds: 3 s and 2 s, of which 2 s is written, with the memory of that round."""
    measured = iter([bench_step.Measured(seconds, 1e6 * seconds, 2, None, 1.0) for seconds in (8.0, 3.0, 5.0, 2.0)])
    monkeypatch.setattr(bench_step, "run_variant", lambda *_: next(measured))
    output = tmp_path / "steps.csv"
    monkeypatch.setattr(sys, "argv", ["bench_step.py", "--rounds", "2", "--only", "K=1", "--output", str(output)])
    bench_step.main()
    rows = {row["step"]: row for row in csv.DictReader(output.open())}
    assert rows["alum K=1"]["seconds"] == "2.0000" and rows["alum K=1"]["ratio_to_stock"] == "0.400"
    assert rows["alum K=1"]["peak_memory_mb"] == "2"
