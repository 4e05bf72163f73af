"""From a model's outputs back to answers, tags and classes, and their scores.

Span answers are the best of the n-best starts times ends over all windows of a question: start not after end, at most
`max_answer_tokens` long, inside the context. For SQuAD v2.0 the score of "no answer" is that of token 0 in the window
where it is lowest; an answer stands when it beats that by more than the threshold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_alum.finetune.benchmarks.features import Feature
from megatron_alum.finetune.benchmarks.loading import Example
from megatron_alum.finetune.benchmarks.metrics import entity_metrics, flat_metrics
from megatron_alum.finetune.benchmarks.squad import (
    adversarial_scores,
    mean_scores,
    no_answer_scores,
    original_of,
    question_scores,
)
from megatron_alum.finetune.benchmarks.tasks import Task


@dataclass(frozen=True)
class Decoded:
    """What a model says about one split."""

    metrics: dict[str, float]
    """name -> value; empty where the split has no labels"""
    predictions: Any
    """[class id or score], {question id: text} or [[tag]]"""
    num_examples: int
    """examples that the metrics are means over; original questions for Adversarial SQuAD"""
    num_with_answer: int | None = None
    """of these, the questions that have an answer (SQuAD v2.0)"""
    no_answer_score: Mapping[str, float] | None = None
    """question id -> score of "no answer" minus that of the best answer (SQuAD v2.0)"""

    def count_of(self, metric: str) -> int:
        """Examples that `metric` is a mean over: has_answer_* and no_answer_* cover a part of the questions."""
        if self.num_with_answer is None or not metric.startswith(("has_answer_", "no_answer_")):
            return self.num_examples
        return self.num_with_answer if metric.startswith("has_") else self.num_examples - self.num_with_answer


@dataclass(frozen=True)
class SpanOptions:
    """How answers are chosen."""

    n_best: int = 20
    """candidate starts and ends a window"""
    max_answer_tokens: int = 30
    """longest answer in tokens"""
    no_answer_threshold: float = 0.0
    """an answer must beat "no answer" by more than minus this; SQuAD v2.0 only"""


def check_finite(outputs: Any, what: str) -> None:
    """Raises: ValueError for outputs that are not all numbers, as those of weights that have diverged."""
    arrays = outputs if isinstance(outputs, tuple) else (outputs,)
    if any(np.isnan(np.asarray(array)).any() for array in arrays):
        raise ValueError(
            f"the model's outputs on {what} must be numbers, but some are NaN: it has diverged. Use a smaller "
            "--learning-rate; what was saved before stays."
        )


def decode(
    task: Task,
    split: str,
    examples: Sequence[Example],
    features: Sequence[Feature],
    outputs: Any,
    *,
    tags: tuple[str, ...] = (),
    spans: SpanOptions | None = None,
) -> Decoded:
    """Predictions and metrics of `outputs` (logits as the Trainer gathers them, in the order of `features`).

    The features may stand in any order: each names its example.
    """
    if task.kind == "spans":
        return _decode_spans(task, split, examples, features, outputs, spans or SpanOptions())
    if task.kind == "tags":
        return _decode_tags(examples, features, outputs, tags)
    logits = np.asarray(outputs[0] if isinstance(outputs, tuple) else outputs)
    if task.kind == "choice":  # a row may have fewer candidates than its batch
        counts = np.array([len(examples[feature["example"]]["endings"]) for feature in features])
        logits = np.where(np.arange(logits.shape[-1]) < counts[:, None], logits, -np.inf)
    values = logits.squeeze(-1) if task.kind == "regression" else logits.argmax(-1)
    predicted = np.empty_like(values)
    predicted[[feature["example"] for feature in features]] = values
    gold = [example["label"] for example in examples]
    metrics = {} if any(label is None for label in gold) else flat_metrics(task.metrics, gold, predicted)
    return Decoded(metrics, predicted.tolist(), len(examples))


def _decode_tags(
    examples: Sequence[Example], features: Sequence[Feature], outputs: Any, tags: tuple[str, ...]
) -> Decoded:
    """The tag of each word's first sub-word; O for a word that has none (an unknown control character)."""
    logits = np.asarray(outputs[0] if isinstance(outputs, tuple) else outputs)
    predicted = [["O"] * len(example["tokens"]) for example in examples]
    for feature, row in zip(features, logits, strict=True):
        for token, word in enumerate(feature["words"]):
            if word is not None:
                predicted[feature["example"]][word] = tags[int(row[token].argmax())]
    gold = [example["tags"] for example in examples]
    metrics = {} if any(sentence is None for sentence in gold) else entity_metrics(gold, predicted, tags)
    return Decoded(metrics, predicted, len(examples))


def _decode_spans(
    task: Task,
    split: str,
    examples: Sequence[Example],
    features: Sequence[Feature],
    outputs: Any,
    options: SpanOptions,
) -> Decoded:
    starts, ends = np.asarray(outputs[0]), np.asarray(outputs[1])
    best: dict[int, tuple[float, str]] = {}
    null: dict[int, float] = {}
    for feature, start, end in zip(features, starts, ends, strict=True):
        index = feature["example"]
        null[index] = min(null.get(index, np.inf), float(start[0] + end[0]))
        score, (first, last) = best_span(start, end, feature["offsets"], options)
        if score > best.get(index, (-np.inf, ""))[0]:
            best[index] = (score, examples[index]["context"][first:last])
    answers = {example["id"]: best.get(i, (-np.inf, ""))[1] for i, example in enumerate(examples)}
    has_gold = all(example["answers"] is not None for example in examples)
    if not task.impossible:
        if not has_gold:
            return Decoded({}, answers, len(examples))
        scores = question_scores(examples, answers)
        if split.startswith("add_"):
            return Decoded(adversarial_scores(scores), answers, len({original_of(key) for key in scores}))
        return Decoded(mean_scores(scores), answers, len(examples))
    margin = {example["id"]: null[i] - best.get(i, (-np.inf, ""))[0] for i, example in enumerate(examples)}
    final = {key: "" if margin[key] > options.no_answer_threshold else text for key, text in answers.items()}
    if not has_gold:
        return Decoded({}, final, len(examples), no_answer_score=margin)
    metrics = no_answer_scores(examples, answers, margin)
    scored = no_answer_scores(examples, final, margin)
    metrics |= {name: value for name, value in scored.items() if not name.startswith("best_")}
    with_answer = sum(bool(example["answers"]) for example in examples)
    return Decoded(metrics, final, len(examples), with_answer, no_answer_score=margin)


def best_span(
    start: np.ndarray, end: np.ndarray, offsets: Sequence[tuple[int, int] | None], options: SpanOptions
) -> tuple[float, tuple[int, int]]:
    """(score, (first, last) character) of the best valid answer of one window; score -inf without one."""
    inside = [token for token, pair in enumerate(offsets) if pair is not None]
    if not inside:
        return -np.inf, (0, 0)
    low, high = inside[0], inside[-1] + 1
    top_starts = low + np.argsort(-start[low:high], kind="stable")[: options.n_best]
    top_ends = low + np.argsort(-end[low:high], kind="stable")[: options.n_best]
    scores = start[top_starts][:, None] + end[top_ends][None, :]
    length = top_ends[None, :] - top_starts[:, None] + 1
    scores = np.where((length >= 1) & (length <= options.max_answer_tokens), scores, -np.inf)
    row, column = np.unravel_index(int(scores.argmax()), scores.shape)
    if scores[row, column] == -np.inf:
        return -np.inf, (0, 0)
    first, last = offsets[top_starts[row]], offsets[top_ends[column]]
    assert first is not None and last is not None
    return float(scores[row, column]), (first[0], last[1])
