"""Flat and entity metrics: hand-worked cases and the formulas written out a second time."""

import math

import numpy as np
import pytest

from megatron_alum.finetune.benchmarks.metrics import entity_metrics, flat_metrics


def test_mcc_by_hand():
    # TP 2, TN 1, FP 1, FN 1: (2*1 - 1*1) / sqrt(3 * 3 * 2 * 2) = 1/6
    gold, predicted = [1, 1, 1, 0, 0], [1, 1, 0, 0, 1]
    result = flat_metrics(("mcc", "accuracy", "f1_binary"), gold, predicted)
    assert result["mcc"] == pytest.approx(1 / 6)
    assert result["accuracy"] == pytest.approx(3 / 5)
    assert result["f1_binary"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))


def test_mcc_of_one_class_is_zero():
    assert flat_metrics(("mcc",), [1, 0, 1], [1, 1, 1])["mcc"] == 0.0


def test_correlations_against_their_definitions():
    gold, predicted = np.array([0.0, 1.0, 2.5, 5.0]), np.array([0.1, 0.9, 4.0, 3.0])
    centred = (gold - gold.mean(), predicted - predicted.mean())
    pearson = (centred[0] * centred[1]).sum() / math.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum())
    # Ranks 1 2 3 4 against 1 2 4 3: rho = 1 - 6 * (0 + 0 + 1 + 1) / (4 * 15) = 0.8
    result = flat_metrics(("pearson", "spearman"), gold, predicted)
    assert result == pytest.approx({"pearson": pearson, "spearman": 0.8})
    assert flat_metrics(("pearson",), gold, np.ones(4))["pearson"] == 0.0


def test_wrong_lengths_are_refused():
    for predicted in ([1], []):
        with pytest.raises(ValueError, match="one entry an example"):
            flat_metrics(("accuracy",), [1, 0][: 2 * len(predicted)], predicted)


def test_entity_f1_by_hand():
    gold = [["B-A", "I-A", "O", "B-B"], ["O", "B-A"]]
    predicted = [["B-A", "I-A", "O", "O"], ["B-B", "B-A"]]
    # gold 3 entities, predicted 3, right 2 -> P = R = F1 = 2/3
    result = entity_metrics(gold, predicted)
    assert result["entity_f1"] == result["entity_precision"] == result["entity_recall"] == pytest.approx(2 / 3)


def test_boundary_errors_lose_the_whole_entity():
    # Predicted entity nested in the gold one: no partial credit. P = 0/1, R = 0/1.
    assert entity_metrics([["B-A", "I-A", "I-A"]], [["O", "B-A", "I-A"]])["entity_f1"] == 0.0


def test_conlleval_rule_and_strict_iob2_differ_on_entities_that_begin_with_i():
    gold, predicted = [["B-A", "I-A", "O"]], [["I-A", "I-A", "O"]]
    result = entity_metrics(gold, predicted)
    assert result["entity_f1"] == 1.0, "conlleval: a chunk may begin with I-"
    assert result["entity_f1_strict"] == 0.0, "IOB2: it may not"
