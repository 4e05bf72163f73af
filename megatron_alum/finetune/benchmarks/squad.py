"""SQuAD's scorers (v1.1, v2.0) and that of Adversarial SQuAD, in percent.

v1.1 takes the best of the gold answers for each question. v2.0 adds questions without answer (gold and prediction are
then the empty string) and searches the no-answer threshold that would have been best. Two answers that normalise to
nothing ("the", "a") match exactly in both, but have F1 0 in v1.1's script and 1 in v2.0's. Adversarial SQuAD groups the
variants of a question; its authors' code and the comment above it differ, so both readings are computed
(`adversarial_scores`). Hand-worked cases: tests/finetune/benchmarks/test_squad.py.
"""

from __future__ import annotations

import re
import string
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
Scores = Mapping[str, tuple[float, float]]  # question id -> (exact match, F1), in [0, 1]


def normalized(answer: str) -> str:
    """Lower case, without punctuation, articles and surplus blanks."""
    return " ".join(ARTICLES.sub(" ", answer.lower().translate(PUNCTUATION)).split())


def exact_match(predicted: str, gold: str) -> float:
    """1 if both are equal once normalised."""
    return float(normalized(predicted) == normalized(gold))


def token_f1(predicted: str, gold: str, *, both_empty: float = 0.0) -> float:
    """F1 of the bags of normalised tokens; 0 without a common one, `both_empty` where neither has any."""
    predicted_tokens, gold_tokens = normalized(predicted).split(), normalized(gold).split()
    if not predicted_tokens and not gold_tokens:
        return both_empty
    common = sum((Counter(predicted_tokens) & Counter(gold_tokens)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(predicted_tokens), common / len(gold_tokens)
    return 2 * precision * recall / (precision + recall)


def question_scores(
    examples: Sequence[Mapping[str, Any]], predictions: Mapping[str, str], *, version_2: bool = False
) -> dict[str, tuple[float, float]]:
    """{id: (exact match, F1)} against the best gold answer; a missing prediction is the empty string.

    `version_2` counts as v2.0's script does: gold answers that normalise to nothing are left out, and two empty
    answers have F1 1; v1.1's keeps them, with F1 0.
    """
    scores = {}
    for example in examples:
        golds = [answer["text"] for answer in example["answers"]]
        if version_2:
            golds = [gold for gold in golds if normalized(gold)]
        golds = golds or [""]
        predicted = predictions.get(example["id"], "")
        scores[example["id"]] = (
            max(exact_match(predicted, gold) for gold in golds),
            max(token_f1(predicted, gold, both_empty=float(version_2)) for gold in golds),
        )
    return scores


def mean_scores(scores: Scores) -> dict[str, float]:
    """Mean exact match and F1 in percent.

    Raises: ValueError without questions.
    """
    if not scores:
        raise ValueError("`scores` must hold at least one question, but is empty.")
    exact, f1 = zip(*scores.values(), strict=True)
    return {"exact_match": 100 * sum(exact) / len(exact), "f1": 100 * sum(f1) / len(f1)}


def no_answer_scores(
    examples: Sequence[Mapping[str, Any]], predictions: Mapping[str, str], no_answer_score: Mapping[str, float]
) -> dict[str, float]:
    """v2.0: scores of the predictions as they stand, apart for HasAns and NoAns, and at the best threshold.

    `predictions` are the best non-empty answers where threshold search shall be able to choose them;
    `no_answer_score` is higher where no answer is likelier. A question is answered when its score is at most the
    threshold.
    """
    scores = question_scores(examples, predictions, version_2=True)
    has_answer = {example["id"]: bool(example["answers"]) for example in examples}
    result = mean_scores(scores)
    for name, wanted in (("has_answer", True), ("no_answer", False)):
        part = {key: value for key, value in scores.items() if has_answer[key] is wanted}
        if part:
            result |= {f"{name}_{metric}": value for metric, value in mean_scores(part).items()}
    for position, metric in enumerate(("exact_match", "f1")):
        single = {key: value[position] for key, value in scores.items()}
        best, threshold = best_threshold(single, predictions, no_answer_score, has_answer)
        result |= {f"best_{metric}": best, f"best_{metric}_threshold": threshold}
    return result


def best_threshold(
    scores: Mapping[str, float],
    predictions: Mapping[str, str],
    no_answer_score: Mapping[str, float],
    has_answer: Mapping[str, bool],
) -> tuple[float, float]:
    """(best score in percent, threshold), answering one question after the other by its no-answer score."""
    current = best = float(sum(not answerable for answerable in has_answer.values()))
    threshold = 0.0
    for key in sorted(no_answer_score, key=lambda name: no_answer_score[name]):
        if has_answer[key]:
            current += scores[key]
        elif predictions.get(key):
            current -= 1
        if current > best:
            best, threshold = current, no_answer_score[key]
    return 100 * best / len(scores), threshold


def original_of(key: str) -> str:
    """Id of the question from which Adversarial SQuAD made a variant: what stands before the first dash."""
    return key.split("-")[0]


def adversarial_scores(scores: Scores) -> dict[str, float]:
    """Adversarial SQuAD in both readings; a variant's id is the original's, a dash and a name.

    exact_match, f1: as the authors' code counts, the variant with the lowest F1, with the exact match of that
    variant; the original only where it has no variant. worst_exact_match, worst_f1: as their comment says, the worst
    of original and variants. original_*: the unchanged questions alone. All divided by the number of original
    questions.
    """
    groups: dict[str, dict[str, tuple[float, float]]] = defaultdict(dict)
    for key, score in scores.items():
        groups[original_of(key)][key] = score
    counted, worst, originals = {}, {}, {}
    for original, members in groups.items():
        variants = {key: score for key, score in members.items() if key != original} or members
        counted[original] = min(variants.values(), key=lambda score: score[1])
        worst[original] = min(members.values(), key=lambda score: (score[1], score[0]))
        if original in members:
            originals[original] = members[original]
    result = mean_scores(counted) | {f"worst_{name}": value for name, value in mean_scores(worst).items()}
    if originals:
        result |= {f"original_{name}": value for name, value in mean_scores(originals).items()}
    return result
