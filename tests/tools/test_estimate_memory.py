"""tools/estimate_memory.py as a user calls it: its sums, its verdict, and what it needs."""

import pytest

from megatron_alum.cli.estimate import EstimateConfig
from megatron_alum.config.cli import parse_config
from tests.helpers.warm import run_script

BASE = ["--vocab-size", "30522", "--model-size", "base", "--bf16", "--global-batch-size", "64"]

GIGABYTES = {"kB": 1e-6, "MB": 1e-3, "GB": 1.0}


def estimate(*words):
    return run_script("tools/estimate_memory.py", *words)


def rows_of(printed):
    """{phase: [weights, gradients, optimizer, activations, head, total] in GB}."""
    lines = [line.split() for line in printed.splitlines() if line.startswith(("standard", "alum"))]
    pairs = {words[0]: zip(words[1:13:2], words[2:13:2], strict=True) for words in lines}
    return {phase: [float(number) * GIGABYTES[unit] for number, unit in found] for phase, found in pairs.items()}


@pytest.fixture(scope="module")
def base():
    done = estimate(*BASE, "--micro-batch-size", "8", "--gpu-memory-gb", "80")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_table_adds_up(base):
    # By hand: (30,592 + 512 + 2) x 768 embeddings, 12 layers of 7,087,872, 624,256 of the MLM head and last LayerNorm,
    # 592,130 of pooler and next-sentence head = 110,160,258 parameters, of 2, 4 and 12 bytes under bf16.
    assert "110 million parameters, 1 process(es)" in base
    rows = rows_of(base)
    assert set(rows) == {"standard", "alum"}
    for *parts, total in rows.values():
        assert parts[:3] == [0.22, 0.441, 1.32]
        assert sum(parts) == pytest.approx(total, rel=0.01)  # figures of three digits
    assert rows["alum"][3] > 1.9 * rows["standard"][3], "two graphs are alive"


def test_the_verdict_follows_from_the_limit(base):
    assert base.count("fits into 80 GB") == 2
    standard, alum = (total for *_, total in rows_of(base).values())
    limit = f"{(standard + alum) / 2:g}"
    between = estimate(*BASE, "--micro-batch-size", "8", "--gpu-memory-gb", limit).stdout.splitlines()
    assert between[3].split() == ["fits", "into", limit, "GB"]
    assert between[5].split()[:4] == ["does", "not", "fit:", "try"]


def test_more_processes_share_the_optimizer():
    shared = estimate(*BASE, "--micro-batch-size", "4", "--use-distributed-optimizer", "--processes", "16")
    assert "16 process(es)" in shared.stdout
    assert rows_of(shared.stdout)["standard"][2] == pytest.approx(1.32 / 16, abs=0.01)


def test_float32_is_the_cpus():
    """By hand: LayerNorms 4 h, q, k, v and context 4 h, around the GELU 8 h a token and layer, and 3 h of embedding;
    the last MLP keeps 10 h for the tokens alone that a head reads, 15 % and the first of each sequence. Attention keeps
    no weights, with dropout or without."""
    words = [word for word in BASE if word != "--bf16"]
    h, tokens = 768, 8 * 512
    by_hand = (12 * 16 + 3) * h * tokens * 4 - 10 * h * 4 * (tokens * 0.85 - 8)
    for dropout in ("0.1", "0"):
        output = estimate(*words, "--micro-batch-size", "8", "--attention-dropout", dropout).stdout
        assert rows_of(output)["standard"][3] == pytest.approx(by_hand / 1e9, rel=0.01)


def test_what_is_missing_or_wrong_ends_it():
    missing = estimate("--model-size", "base")
    assert missing.returncode != 0 and "--vocab-size" in missing.stderr
    wrong = estimate(*BASE, "--micro-batch-size", "7")
    assert wrong.returncode != 0 and "global_batch_size" in wrong.stderr.replace("-", "_")


def test_the_processes_hold_whole_replicas():
    words = [*BASE, "--data-path", "x", "--dry-run", "--tensor-model-parallel-size", "2", "--processes", "3"]
    with pytest.raises(ValueError, match=r"The number of processes must be a multiple of .* \(2\), but is 3 instead"):
        parse_config(EstimateConfig, words)
