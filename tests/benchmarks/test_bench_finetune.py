"""What a regularised fine-tuning step costs in FLOPs, against the standard one; the benchmark times it, too."""

import csv

import pytest

from tests.helpers.warm import run_script

SMALL = ("--layers", 2, "--width", 64, "--vocab", 1000, "--batch", 2, "--length", 16, "--rounds", 1)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """{method: row} of the benchmark's table."""
    output = tmp_path_factory.mktemp("cost") / "finetune.csv"
    done = run_script("benchmarks/bench_finetune.py", *SMALL, "--output", output)
    assert done.returncode == 0, done.stderr
    return {row["method"]: row for row in csv.DictReader(output.read_text().splitlines())}


def test_flops_of_a_step(rows):
    flops = {name: float(row["flops"]) for name, row in rows.items()}
    # 8F / 3F: clean forward and backward 3F, ascent 2F, adversarial forward and backward 3F. The word embedding's
    # gradient is a sum of rows, not a matrix product: the ratio is a little above or below 8 / 3.
    assert 2.5 < flops["alum"] < 2.7
    # R-Drop: a second forward and backward, no ascent. FreeLB with K = 3: three of each.
    assert flops["r-drop"] == pytest.approx(2.0, abs=0.05)
    assert flops["freelb"] == pytest.approx(3.0, abs=0.1)


def test_every_method_is_timed(rows):
    assert list(rows) == ["none", "alum", "alum-normalized", "smart", "freelb", "r-drop"]
    for row in rows.values():
        ratio = float(row["seconds"]) / float(rows["none"]["seconds"])
        assert float(row["ratio_to_none"]) == pytest.approx(ratio, rel=0.02)  # seconds are written with four places
