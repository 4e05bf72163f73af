"""Tag files that a tagging run must live with: IOBES, and tags that training never saw."""

import pytest

from megatron_alum.finetune.benchmarks.metrics import entity_metrics
from tests.finetune.runs.test_tools import encoder, rows_of, run_tool  # noqa: F401


def tag(encoder, folder, output, sentences):  # noqa: F811
    """{(split, metric): value} of a run on one sentence a split, repeated."""
    for split, sentence in sentences.items():
        lines = "".join(f"{word}\t{label}\n" for word, label in sentence)
        (folder / f"{split}.tsv").write_text((lines + "\n") * 16)
    run_tool(
        *("finetune", "--model", encoder, "--task", "bc2gm", "--data-dir", folder, "--output", output),
        *("--num-train-epochs", 6, "--learning-rate", 5e-3, "--per-device-train-batch-size", 4),
    )
    return {(row["split"], row["metric"]): row["value"] for row in rows_of(output / "results.jsonl")}


def test_iobes_is_trained_and_scored_strictly_by_its_own_rule(encoder, tmp_path):  # noqa: F811
    sentence = [("good", "S-G"), ("film", "O"), ("bad", "B-G"), ("film", "E-G")]
    result = tag(encoder, tmp_path, tmp_path / "out", {"train": sentence, "devel": sentence, "test": sentence})
    assert 0.0 <= result["test", "entity_f1_strict"] <= result["test", "entity_f1"]


def test_a_tag_of_the_test_set_alone_counts_as_missed(encoder, tmp_path):  # noqa: F811
    known = [("good", "B-G"), ("film", "O")]
    sentences = {"train": known, "devel": known, "test": [*known, ("film", "B-NEW")]}
    result = tag(encoder, tmp_path, tmp_path / "out", sentences)
    assert result["dev", "entity_recall"] == 1.0
    assert result["test", "entity_recall"] == 0.5, "the known entity is found, the new one cannot be"


@pytest.mark.parametrize(("first", "strict"), [("S-A", 1.0), ("B-A", 2 / 3)])
def test_strict_iobes_by_hand(first, strict):
    """A single word not marked S- is no entity: one of two is found and none is wrong, P = 1, R = 1/2, F1 = 2/3."""
    result = entity_metrics([["S-A", "O", "B-A", "E-A"]], [[first, "O", "B-A", "E-A"]])
    assert result["entity_f1_strict"] == pytest.approx(strict)
