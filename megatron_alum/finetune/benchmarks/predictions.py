"""Predictions in the form each benchmark's server or script takes.

GLUE, other classes   index<TAB>prediction, class names (three decimals for scores)       MNLI-m.tsv, dev.tsv, ...
SQuAD                 {question id: answer}; v2.0 also {question id: no-answer score}     dev.json, *_null_odds.json
tags                  token<TAB>gold (where there is one)<TAB>predicted, an empty line    dev.conll
                      after each sentence
choice                index<TAB>candidate                                                 dev.tsv
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from megatron_alum.finetune.benchmarks.decoding import Decoded
from megatron_alum.finetune.benchmarks.loading import Example
from megatron_alum.finetune.benchmarks.tasks import Task

SERVER_NAMES = {"test": "{name}", "test_mismatched": "MNLI-mm.tsv"}


def write_predictions(task: Task, split: str, examples: Sequence[Example], decoded: Decoded, folder: Path) -> Path:
    """Write the predictions of one split below `folder`; the path of the main file."""
    if task.kind == "spans":
        return _write_spans(split, decoded, folder)
    if task.kind == "tags":
        path = folder / f"{split}.conll"
        sentences = (_conll(example, tags) for example, tags in zip(examples, decoded.predictions, strict=True))
        path.write_text("".join(sentences), encoding="utf-8")
        return path
    path = folder / file_name(task, split)
    lines = [f"{index}\t{_printed(task, value)}\n" for index, value in enumerate(decoded.predictions)]
    path.write_text("index\tprediction\n" + "".join(lines), encoding="utf-8")
    return path


def file_name(task: Task, split: str) -> str:
    """GLUE's own name for a test split, the split's name otherwise."""
    if task.submission and split in SERVER_NAMES:
        return SERVER_NAMES[split].format(name=task.submission)
    return f"{split}.tsv"


def _printed(task: Task, value: float) -> str:
    if task.kind == "regression":
        return f"{value:.3f}"
    return task.labels[int(value)] if task.labels else str(int(value))


def _conll(example: Example, predicted: Sequence[str]) -> str:
    columns = filter(None, (example["tokens"], example["tags"], predicted))
    return "".join("\t".join(row) + "\n" for row in zip(*columns, strict=True)) + "\n"


def _write_spans(split: str, decoded: Decoded, folder: Path) -> Path:
    path = folder / f"{split}.json"
    path.write_text(json.dumps(decoded.predictions), encoding="utf-8")
    if decoded.no_answer_score is not None:
        odds = folder / f"{split}_null_odds.json"
        odds.write_text(json.dumps(dict(decoded.no_answer_score)), encoding="utf-8")
    return path
