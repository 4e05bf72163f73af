"""What a fine-tuned folder records beside its weights, so that attack, evaluation and prediction read, truncate and
label as training did: the task, its classes, the columns of a task of the user's own, and the lengths.

    OUTPUT/model/finetuned.json     {"task", "kind", "labels", "max_seq_length", "doc_stride", "max_query_length",
                                     "repairs", "text_column", "text_pair_column", "label_column"}

A folder from elsewhere, without the file, is described by the flags.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_alum.config.finetune import CustomTaskConfig
from megatron_alum.finetune.benchmarks.tasks import Task, custom_task, task_named
from megatron_alum.finetune.runs.models import checked_folder, head_of
from megatron_alum.finetune.runs.records import write_at_once

FILE_NAME = "finetuned.json"
LENGTH_ELSEWHERE = 512  # tokens for a folder without a record


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


def task_of(folder: str, name: str | None, custom: CustomTaskConfig) -> Task:
    """The task `name`, or that of the folder; for a task of the user's own, what the flags leave open is taken from
    the folder: from its record, or for a folder from elsewhere from its head.

    Raises: ValueError if neither names one.
    """
    if name is not None and name != "custom":
        return task_named(name)  # before the folder: a misspelled task is reported first
    stored = stored_task(checked_folder(folder, "--model"))
    name = name or stored.get("task")
    if name is None:
        raise ValueError(f"--task must be given, but is not, and {folder} has no {FILE_NAME} that names it.")
    if name != "custom":
        return task_named(name)
    if stored.get("task") == "custom":
        return custom_task(with_stored(custom, stored))
    kind, labels = head_of(folder)
    kind = custom.kind or kind
    labels = custom.labels or (labels if kind == "classification" else ())
    return custom_task(replace(custom, kind=kind, labels=labels))


def with_stored(custom: CustomTaskConfig, stored: Mapping[str, Any]) -> CustomTaskConfig:
    """The columns and classes of a folder's task in place of flags at their defaults."""
    usual, changes = CustomTaskConfig(), {}
    for name in ("text_column", "text_pair_column", "label_column"):
        if getattr(custom, name) == getattr(usual, name):
            changes[name] = stored[name]
    kind = custom.kind or stored["kind"]
    labels = custom.labels or (tuple(stored["labels"]) if kind == "classification" else ())
    return replace(custom, **changes, kind=kind, labels=labels)
