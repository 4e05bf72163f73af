"""SQuAD's scorers on cases worked out by hand in the comments."""

import pytest

from megatron_alum.finetune.benchmarks.squad import (
    adversarial_scores,
    mean_scores,
    no_answer_scores,
    normalized,
    question_scores,
    token_f1,
)


def question(key, *answers):
    return {"id": key, "answers": [{"text": text, "answer_start": 0} for text in answers]}


def test_normalisation():
    assert normalized("The  U.S. -- an Apple!") == "us apple"


def test_token_f1_by_hand():
    # "cat sat on mat" against "cat on red mat": 3 common of 4 and 4 -> P = R = 3/4 -> F1 = 3/4 ("the" is dropped)
    assert token_f1("the cat sat on the mat", "cat on red mat") == pytest.approx(0.75)
    # "new york city" against "york": P = 1/3, R = 1 -> F1 = 2 * (1/3) / (4/3) = 1/2
    assert token_f1("New York City", "York") == pytest.approx(0.5)
    assert token_f1("cat", "") == 0.0 and token_f1("cat", "dog") == 0.0
    # repeated words count as often as they occur: "a b b" has {b: 2}; against "b": common 1, P = 1/2, R = 1 -> 2/3
    assert token_f1("b b", "b") == pytest.approx(2 / 3)


def test_two_empty_answers_in_both_versions():
    """Gold "a", predicted "the": both normalise to no token at all.

    v1.1's script: 0 common tokens -> F1 0, though the strings match exactly. v2.0's: F1 1 if both are empty; but it
    leaves such a gold answer out, so that the empty string is the only right answer.
    """
    assert token_f1("the", "a") == token_f1("", "") == 0.0
    assert token_f1("the", "a", both_empty=1.0) == token_f1("", "", both_empty=1.0) == 1.0
    assert token_f1("cat", "", both_empty=1.0) == token_f1("", "cat", both_empty=1.0) == 0.0
    assert question_scores([question("1", "a")], {"1": "the"}) == {"1": (1.0, 0.0)}
    assert question_scores([question("1", "a")], {"1": "the"}, version_2=True) == {"1": (1.0, 1.0)}
    # Another gold answer with tokens is a token match or not; the best counts for each measure on its own.
    assert question_scores([question("1", "a", "a cat")], {"1": "the"}) == {"1": (1.0, 0.0)}
    assert question_scores([question("1", "a", "a cat")], {"1": "the"}, version_2=True) == {"1": (0.0, 0.0)}
    assert no_answer_scores([question("1")], {"1": ""}, {"1": 1.0})["f1"] == 100.0


def test_best_gold_answer_counts_and_missing_predictions_are_wrong():
    examples = [question("1", "Santa Clara, California", "Levi's Stadium"), question("2", "blue")]
    scores = question_scores(examples, {"1": "levis stadium"})
    assert scores == {"1": (1.0, 1.0), "2": (0.0, 0.0)}
    assert mean_scores(scores) == {"exact_match": 50.0, "f1": 50.0}
    with pytest.raises(ValueError, match="at least one"):
        mean_scores({})


@pytest.mark.requires_shared_data
@pytest.mark.parametrize("name", ["dev-v1.1.rebuilt.json", "dev-v2.0.rebuilt.json"])
def test_gold_against_itself_is_perfect(shared_data, name):
    from megatron_alum.finetune.benchmarks.readers import read_squad

    examples = list(read_squad(shared_data / "squad" / name))
    gold = {e["id"]: e["answers"][-1]["text"] if e["answers"] else "" for e in examples}
    gold |= first_real_answers(examples)  # answers such as "a" normalise to nothing and have no F1 of 1
    scores = question_scores(examples, gold, version_2="v2.0" in name)
    assert mean_scores(scores) == {"exact_match": 100.0, "f1": 100.0}


def first_real_answers(examples):
    """{id: first gold answer that normalises to something}."""
    found = {e["id"]: [a["text"] for a in e["answers"] if normalized(a["text"])] for e in examples}
    return {key: texts[0] for key, texts in found.items() if texts}


def test_version_2_by_hand():
    # a, b have answers, c, d have none. a is right, b wrong, c wrongly answered, d empty.
    examples = [question("a", "red"), question("b", "blue"), question("c"), question("d")]
    answers = {"a": "red", "b": "green", "c": "black", "d": ""}
    margin = {"a": -3.0, "b": -1.0, "c": 0.5, "d": 2.0}
    result = no_answer_scores(examples, answers, margin)
    # As they stand: a 1, b 0, c 0, d 1 -> 50; HasAns 1/2; NoAns 1/2.
    assert result["exact_match"] == result["f1"] == 50.0
    assert result["has_answer_f1"] == 50.0 and result["no_answer_f1"] == 50.0
    # Nothing answered: 2 of 4. In order a, b, c, d: +1 = 3 (best, threshold -3), +0 = 3, -1 = 2 (c answered), 2.
    assert result["best_f1"] == 75.0 and result["best_f1_threshold"] == -3.0


def test_adversarial_squad_in_both_readings():
    """x: original right, variant F1 0.5; y: original wrong, variant right; z: no variant, right."""
    scores = {
        "x": (1.0, 1.0),
        "x-turk0": (0.0, 0.5),
        "x-turk1": (1.0, 1.0),
        "y": (0.0, 0.0),
        "y-turk0": (1.0, 1.0),
        "z": (1.0, 1.0),
    }
    result = adversarial_scores(scores)
    # Code: x -> its worst variant (0, 0.5); y -> its only variant (1, 1), though the original is worse; z -> original.
    assert result["f1"] == pytest.approx(100 * 2.5 / 3) and result["exact_match"] == pytest.approx(100 * 2 / 3)
    # Comment: worst of all: x 0.5, y 0, z 1.
    assert result["worst_f1"] == pytest.approx(100 * 1.5 / 3)
    assert result["worst_exact_match"] == pytest.approx(100 / 3)
    assert result["original_f1"] == pytest.approx(100 * 2 / 3)


def test_adversarial_exact_match_is_that_of_the_lowest_f1_variant():
    """An exact match of another variant does not count: EM goes with the variant that F1 chose."""
    result = adversarial_scores({"x-turk0": (0.0, 0.6), "x-turk1": (0.0, 0.4), "x-turk2": (1.0, 1.0)})
    assert result["f1"] == pytest.approx(40.0) and result["exact_match"] == 0.0
