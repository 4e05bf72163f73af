"""What a fine-tuned folder says of itself beside its weights, so that attack, evaluation and prediction cut, name and
read as training did: the task, its classes, the columns of a task of the user's own, and the lengths.

    OUTPUT/model/finetuned.json     {"task", "kind", "labels", "max_seq_length", "doc_stride", "max_query_length",
                                     "repairs", "text_column", "text_pair_column", "label_column"}

A folder without the file, from elsewhere, is taken as the flags say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_alum.config.finetune import CustomTaskConfig
from megatron_alum.finetune.benchmarks.tasks import Task, custom_task, task_named
from megatron_alum.finetune.runs.models import head_of
from megatron_alum.finetune.runs.records import write_at_once

FILE_NAME = "finetuned.json"
LENGTH_ELSEWHERE = 512  # tokens of a folder that does not say


def store_task(folder: str | Path, task: Task, lengths: Mapping[str, int], tags: tuple[str, ...] = ()) -> None:
    """Write FILE_NAME into a model's folder."""
    content = {
        "task": task.name,
        "kind": task.kind,
        "labels": list(tags or task.labels),
        **lengths,
        "text_column": task.first[0],
        "text_pair_column": task.second[0] if task.second else None,
        "label_column": task.label[0],
    }
    write_at_once(Path(folder) / FILE_NAME, json.dumps(content, indent=1) + "\n")


def stored_task(folder: str | Path) -> dict[str, Any]:
    """The content of FILE_NAME; {} for a folder without it.

    Raises: ValueError for a file that is damaged.
    """
    path = Path(folder) / FILE_NAME
    if not path.is_file():
        return {}
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return {**content, "max_seq_length": int(content["max_seq_length"]), "task": str(content["task"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must be as megatron-alum finetune writes it, but is not: {error!r}.") from None


def task_of(folder: str, name: str | None, custom: CustomTaskConfig, train_file: str | None = None) -> Task:
    """The task `name`, or that of the folder; of a task of the user's own, what the flags leave open is the folder's:
    as it was trained here, or for a folder from elsewhere by its head.

    Raises: ValueError where neither names one.
    """
    stored = stored_task(folder)
    name = name or stored.get("task")
    if name is None:
        raise ValueError(f"--task must be given, but is not, and {folder} has no {FILE_NAME} that names it.")
    if name != "custom":
        return task_named(name)
    if stored.get("task") == "custom":
        return custom_task(with_stored(custom, stored), train_file)
    kind, labels = head_of(folder)
    kind = custom.kind or kind
    labels = custom.labels or (labels if kind == "classification" else ())
    return custom_task(replace(custom, kind=kind, labels=labels), train_file)


def with_stored(custom: CustomTaskConfig, stored: Mapping[str, Any]) -> CustomTaskConfig:
    """The columns and classes of a folder's task wherever the flags are at their defaults."""
    usual, changes = CustomTaskConfig(), {}
    for name in ("text_column", "text_pair_column", "label_column"):
        if getattr(custom, name) == getattr(usual, name):
            changes[name] = stored[name]
    kind = custom.kind or stored["kind"]
    labels = custom.labels or (tuple(stored["labels"]) if kind == "classification" else ())
    return replace(custom, **changes, kind=kind, labels=labels)
