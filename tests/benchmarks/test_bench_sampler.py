"""The benchmark of the sampler: its table and CSV on a small shard. Speeds are examined in `make bench`."""

import csv

from tests.helpers.warm import run_script


def run_bench(path, *options):
    done = run_script("benchmarks/bench_sampler.py", "--output", path, *options)
    assert done.returncode == 0, done.stderr
    with path.open() as stream:
        return list(csv.DictReader(stream)), done.stdout


def test_table_and_csv(tmp_path):
    rows, printed = run_bench(
        tmp_path / "bench.csv",
        "--documents",
        "300",
        "--seconds",
        "0.1",
        "--index-documents",
        "1000",
        "--seq-length",
        "128",
    )
    assert [row["case"] for row in rows] == ["megatron-core", "python", "cpp", "cpp", "placement", "cpp index"] + [
        "cpp"
    ] * 4
    assert [row["threads"] for row in rows[2:4]] == ["1", "2"]
    for row in rows:
        assert float(row["samples_per_second"]) > 0 and row["processor"] and row["commit"]
    assert float(rows[0]["times_megatron_core"]) == 1.0
    assert "pair index: 1,000 documents" in printed and "samples/s" in printed and "placement: 4,096" in printed


def test_a_missing_shard_is_one_sentence(tmp_path):
    done = run_script("benchmarks/bench_sampler.py", "--data-path", tmp_path / "nothing")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr
