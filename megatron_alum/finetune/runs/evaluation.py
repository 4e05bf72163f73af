"""Evaluate a finished folder, or predict a file with it, without training data.

OUTPUT/results.jsonl     one row per split and metric, as in training but without learning rate and batch size
OUTPUT/SPLIT.tsv, ...    predictions (predictions.py); those of --predict-file are OUTPUT/predict.*
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_alum.config.finetune import FinetuneConfig
from megatron_alum.finetune.benchmarks.class_names import class_names
from megatron_alum.finetune.benchmarks.decoding import SpanOptions, check_finite, decode
from megatron_alum.finetune.benchmarks.features import Collator, Encoder, Feature
from megatron_alum.finetune.benchmarks.loading import GOLD_OF, Example, has_split, load_split
from megatron_alum.finetune.benchmarks.predictions import write_predictions
from megatron_alum.finetune.benchmarks.tasks import Task
from megatron_alum.finetune.runs.batching import longest_first
from megatron_alum.finetune.runs.models import check_finetuned, load_finetuned, load_tokenizer, longest_input
from megatron_alum.finetune.runs.prepare import sampled_split, with_whole_gold
from megatron_alum.finetune.runs.records import write_at_once
from megatron_alum.finetune.runs.stored import LENGTH_ELSEWHERE, stored_task, task_of


def evaluate_folder(config: FinetuneConfig) -> list[dict[str, Any]]:
    """Run --model on the task's splits, or on --predict-file; the result rows.

    Raises: ValueError for an --output that holds a training run, for missing files, and if no split exists.
    """
    data = config.data
    output = Path(data.output)
    if (output / "config.json").is_file():
        raise ValueError(f"--output must be a new folder to evaluate into, but {output} holds a training run.")
    task = task_of(data.model, data.task, data.custom)
    check_finetuned(data.model, task)
    splits = _examples(config, task)
    tokenizer = load_tokenizer(data.tokenizer or data.model, task.kind)
    model = load_finetuned(data.model, task).to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
    tags = tuple(class_names(model.config)) if task.kind == "tags" else ()
    encoder = encoder_of(data.model, task, tokenizer, data.max_seq_length, tags)
    if not stored_task(data.model):  # a folder from elsewhere
        encoder = with_whole_gold(encoder, next(iter(splits.values())))
    collate, rows = Collator(tokenizer, task.kind), []
    output.mkdir(parents=True, exist_ok=True)
    for name, examples in splits.items():
        features = longest_first(encoder.encode(examples))
        outputs = model_outputs(model, features, collate, config.training.per_device_eval_batch_size)
        options = SpanOptions(data.n_best_size, data.max_answer_length, data.null_score_diff_threshold)
        check_finite(outputs, f"{name} of {data.model}")
        decoded = decode(task, name, examples, features, outputs, tags=tags, spans=options)
        write_predictions(replace(task, submission=None), name, examples, decoded, output)
        common = {"seed": 0, "model": data.model, "method": "evaluate", "learning_rate": 0.0, "batch_size": 0}
        rows += [
            {
                "task": task.name,
                "split": name,
                "metric": metric,
                "value": value,
                "n": decoded.count_of(metric),
                **common,
            }
            for metric, value in decoded.metrics.items()
        ]
    if rows:
        write_at_once(output / "results.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return rows


def encoder_of(
    folder: str, task: Task, tokenizer: Any, max_seq_length: int | None, tags: tuple[str, ...] = ()
) -> Encoder:
    """How texts become tokens for a finished folder: as in its training, unless a length is given."""
    stored = stored_task(folder)
    wanted = max_seq_length or stored.get("max_seq_length", LENGTH_ELSEWHERE)
    length = longest_input(folder, tokenizer, wanted)
    stride = min(stored.get("doc_stride", 128), length // 4)
    question = stored.get("max_query_length", 64)
    repairs = bool(stored.get("repairs", False))
    return Encoder(tokenizer, task.kind, length, stride, tags, max_question_tokens=question, repairs=repairs)


def _examples(config: FinetuneConfig, task: Task) -> dict[str, list[Example]]:
    """{split: examples} of --predict-file, or of every split but train whose files are there."""
    data = config.data
    if data.predict_file is not None:
        path = str(Path(data.predict_file).resolve())
        examples = load_split(replace(task, files={"predict": (path,)}, own_files=True), ".", "predict")
        if not examples:
            raise ValueError(f"--predict-file must hold rows, but {path} has none.")
        num_gold = sum(example[GOLD_OF.get(task.kind, "label")] is not None for example in examples)
        if 0 < num_gold < len(examples):
            print(f"{path}: {num_gold} of {len(examples)} rows have a label: predicted, not scored")
        return {"predict": examples}
    names = [name for name in task.files if name != "train" and has_split(task, data.data_dir, name)]
    if not names:
        raise ValueError(
            f"--data-dir must hold files of {task.name} to evaluate on, or --validation-file or --predict-file must be "
            "given, but neither is."
        )
    return {name: sampled_split(task, data.data_dir, name, data.max_eval_samples) for name in names}


def model_outputs(model: Any, features: list[Feature], collate: Collator, batch_size: int) -> Any:
    """The logits for features in their order: an array, or (start, end) for spans, padded with -100 to one width."""
    parts: list[list[np.ndarray]] = []
    with torch.no_grad():
        for first in range(0, len(features), batch_size):
            batch = collate(features[first : first + batch_size])
            labels = {"labels", "start_positions", "end_positions"}
            outputs = model(**{name: value.to(model.device) for name, value in batch.items() if name not in labels})
            names = [name for name in ("start_logits", "end_logits", "logits") if name in outputs]
            parts.append([outputs[name].float().cpu().numpy() for name in names])
    joined = tuple(_stacked([part[i] for part in parts]) for i in range(len(parts[0])))
    return joined if len(joined) > 1 else joined[0]


def _stacked(arrays: list[np.ndarray]) -> np.ndarray:
    """Arrays [B, ...] concatenated, each padded on the right of its second dimension."""
    width = max(array.shape[1] for array in arrays)
    rest = [(0, 0)] * (arrays[0].ndim - 2)
    padded = [np.pad(a, [(0, 0), (0, width - a.shape[1]), *rest], constant_values=-100.0) for a in arrays]
    return np.concatenate(padded)
