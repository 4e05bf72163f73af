"""Figures that the pages quote from files of benchmarks/results and from the kept run, computed again from those files.

The fused operations (ops_cpu*.csv) are not here.
"""

import csv
import json
import statistics

import pytest

from tests.docs.pages import ROOT

RESULTS = ROOT / "benchmarks" / "results"
README = (ROOT / "README.md").read_text()
STEPS = {
    "standard": "standard",
    "alum K=1": "ALUM",
    "alum late layer": "late layer",
    "alum K=0": "random perturbation alone",
}
"""row of step_text_*.csv -> what the README calls it"""


def table(name, key):
    """{value of the column `key`: row} of a file of benchmarks/results; of equal keys the last row."""
    with (RESULTS / name).open(encoding="utf-8", newline="") as stream:
        return {row[key]: row for row in csv.DictReader(stream)}


def number(row, column):
    return float(row[column])


@pytest.mark.parametrize("length", [128, 512])
def test_whole_steps_without_padding(length):
    rows = table(f"step_text_{length}.csv", "step")
    times = ", ".join(f"{called} {number(rows[name], 'ratio_to_stock'):.2f}" for name, called in STEPS.items())
    stock = number(rows["stock megatron-core BertModel"], "peak_memory_mb")
    shares = [number(rows[name], "peak_memory_mb") / stock for name in STEPS]
    expected = f"{times} times; {min(shares):.2f} to {max(shares):.2f} times the memory"
    (line,) = [line for line in README.splitlines() if f"`benchmarks/results/step_text_{length}.csv`" in line]
    assert expected in line


def test_one_adversarial_step_of_full_rows():
    measured = number(table("step_cpu.csv", "step")["alum K=1"], "ratio_to_standard")
    counted = number(table("finetune_cpu.csv", "method")["alum"], "flops")
    assert f"| {measured:.2f} times (FLOPs: {counted:.2f}) |" in README


def test_preprocessing():
    rows = table("data.csv", "what")
    rate = {what: number(row, "megabytes_per_second") for what, row in rows.items()}
    one, two = (rate[f"preprocess_data.py, {workers} worker(s)"] for workers in (1, 2))
    times = one / rate["punkt, sentence by sentence"]
    assert (
        f"| {one:.1f} MB/s with one worker, {times:.0f} times as fast as Punkt with one tokenizer call per sentence; "
        f"{two:.1f} MB/s with two |" in README
    )
    one, two = (rate[f"MediaWiki reader, {workers} worker(s)"] for workers in (1, 2))
    times = one / rate["wikiextractor, 1 process(es)"]
    assert (
        f"| {one:.1f} MB/s of XML with one worker, {times:.1f} times wikiextractor; two workers are {two / one:.2f} "
        "times as fast as one |" in README
    )


def test_sampler():
    with (RESULTS / "sampler.csv").open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if (row["objective"], row["masking"]) == ("nsp", "token")]
    one, two = (
        next(row for row in rows if (row["case"], row["threads"]) == ("cpp", str(threads))) for threads in (1, 2)
    )
    rate, times = number(one, "samples_per_second"), number(one, "times_megatron_core")
    assert (
        f"| {rate / 1e6:.2f} million samples/s, {times:,.0f} times as fast as megatron-core's data set; "
        f"two threads are {number(two, 'samples_per_second') / rate:.2f} times as fast as one |" in README
    )
    (python,) = [row for row in rows if row["case"] == "python"]
    assert 200 <= rate / number(python, "samples_per_second") < 1000, '"hundreds of times" is said by native.py'


def test_fine_tuning_steps():
    text = (ROOT / "examples" / "finetune.md").read_text()
    for method, row in table("finetune_cpu.csv", "method").items():
        flops, ratio = number(row, "flops"), number(row, "ratio_to_none")
        seconds = f" ({number(row, 'seconds'):.2f} s)" if method == "none" else ""
        called = {"smart": "smart (K = 1)", "freelb": "freelb (K = 3)"}.get(method, method)
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {called} |") and line.count("|") == 5]
        assert line.endswith(f"| {flops:.2f} | {ratio:.2f}{seconds} |"), (line, row)


def test_the_kept_run():
    lines = (ROOT / "tests" / "golden" / "training" / "wikipedia_300.jsonl").read_text().splitlines()
    losses = [json.loads(line)["lm_loss"] for line in lines]
    assert f"| {losses[0]:.2f} -> {statistics.fmean(losses[-20:]):.2f} (unigram entropy of the text: 7.25) |" in README
