"""From a task's row and a folder to examples: plain dicts of text, the same for every source format.

    classification, regression   {"id", "first", "second" or None, "label": int, float or None}
    choice                       {"id", "first", "second", "endings": [str] * n, "label": int or None}
    spans                        {"id", "context", "question", "answers": [{"text", "answer_start"}], "is_impossible"}
    tags                         {"id", "tokens": [str], "tags": [str]}

A folder that lacks a split's files is an error that lists the files expected. Only a test split may be without labels
(None), and then in all rows of a file: it is predicted, not scored.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from megatron_alum.finetune.readers import TAG, Row, check_answers, form_of, read_rows
from megatron_alum.finetune.tasks import TASKS, Columns, Task

Example = dict[str, Any]
ENDINGS = ("ending0", "ending1", "ending2", "ending3")


def load_split(task: Task, data_dir: str | Path, split: str) -> list[Example]:
    """All examples of one split, in the order of the files.

    Raises: ValueError for a missing file (naming what was looked for) or a malformed row (naming file and line).
    """
    if split == "train" and task.train_parts:
        return [example for part in task.train_parts for example in load_split(TASKS[part], data_dir, "train")]
    return [example for path in find_files(task, data_dir, split) for example in _examples_of(task, path, split)]


def has_split(task: Task, data_dir: str | Path, split: str) -> bool:
    """Whether the files of a split are there."""
    try:
        if split == "train" and task.train_parts:
            return all(find_files(TASKS[part], data_dir, "train") for part in task.train_parts)
        return bool(find_files(task, data_dir, split))
    except ValueError:
        return False


def find_files(task: Task, data_dir: str | Path, split: str) -> list[Path]:
    """The files of a split: the first alternative whose files all exist, below the data folder or the task's own.

    Raises: ValueError listing every place looked at.
    """
    root = Path(data_dir)
    if split not in task.files:
        raise ValueError(f"`split` must be one of {', '.join(task.files)} for {task.name}, but is {split!r} instead.")
    for folder in (root, *(root / name for name in task.folders)):
        for alternative in task.files[split]:
            found = [_match(folder, pattern) for pattern in alternative.split(" + ")]
            if all(found):
                return [path for path in found if path]
    folders = " or ".join(str(path) for path in (root, *(root / name for name in task.folders)))
    raise ValueError(
        f"--data-dir must hold the {split} files of {task.name}, but none of {', '.join(task.files[split])} "
        f"is in {folders}."
    )


def _match(folder: Path, pattern: str) -> Path | None:
    """The file, or folder saved by the `datasets` library, that a pattern names; the first in alphabetical order."""
    if Path(pattern).is_absolute():
        return Path(pattern) if Path(pattern).is_file() else None
    if not folder.is_dir():
        return None
    for path in sorted(folder.glob(pattern)):
        if path.is_file() or (path / "state.json").is_file():
            return path
    return None


def _examples_of(task: Task, path: Path, split: str) -> list[Example]:
    """The examples of one file."""
    form = task.form if task.form in ("conll", "squad") else form_of(path, task.form)
    is_test = split.startswith("test")
    # A submission needs every row of a test file.
    rows = read_rows(path, form, task.header, skip_short=task.skips_short_rows and not is_test)
    examples, unlabelled = [], []
    for index, row in enumerate(rows):
        where = f"{path}:{row.get('_line', index + 1)}"
        if task.kind == "spans":
            example: Example | None = _span_example(row, path, has_answer=not (task.impossible or is_test))
        elif task.kind == "tags":
            example = _tag_example(row, index, where)
        else:
            example = _text_example(task, row, index, where, requires_label=not is_test)
        if example is not None:
            examples.append(example)
            if example.get("label", 0) is None:
                unlabelled.append(where)
    if unlabelled and not (is_test and len(unlabelled) == len(examples)):
        raise ValueError(f"{unlabelled[0]}: the label must be given in every row of {split}, but is missing.")
    return examples


def _text_example(task: Task, row: Row, index: int, where: str, *, requires_label: bool) -> Example | None:
    """A text or pair, or a choice; None for a row whose label is dropped."""
    raw = _column(row, task.label, where, required=requires_label)
    if str(raw) in task.dropped_labels:
        return None
    second = None
    if task.second is not None:
        second = _column(row, task.second, where, required=task.kind != "choice") or ""
    endings = _endings(row, where) if task.kind == "choice" else []
    example: Example = {
        "id": str(row.get("index", row.get("uid", row.get("id", index)))),
        "first": str(_column(row, task.first, where, required=True)),
        "second": None if second is None else str(second),
        "label": _label(task, raw, where, len(endings)),
    }
    return {**example, "endings": endings} if endings else example


def _label(task: Task, raw: Any, where: str, num_endings: int) -> int | float | None:
    """The class id, score or candidate of a raw label; None where a file has none."""
    text = "" if raw is None else str(raw)
    name = task.synonyms.get(text, text)
    if name in task.labels:
        return task.labels.index(name)
    if text in task.missing_labels:
        return None
    if task.labels:
        raise ValueError(f"{where}: the label must be one of {', '.join(task.labels)}, but is {raw!r} instead.")
    try:
        value = float(text) if task.kind == "regression" else int(text)
    except ValueError:
        raise ValueError(f"{where}: the label must be a number, but is {raw!r} instead.") from None
    if not math.isfinite(value):
        raise ValueError(f"{where}: the label must be a finite number, but is {raw!r} instead.")
    if task.kind == "choice" and not 0 <= value < num_endings:
        raise ValueError(f"{where}: the label must be from 0 to {num_endings - 1}, but is {raw!r} instead.")
    return value


def _endings(row: Row, where: str) -> list[str]:
    """The candidates of a multiple-choice row, from a list (HellaSWAG) or numbered columns (SWAG)."""
    endings = row.get("endings") or [row[name] for name in ENDINGS if name in row]
    if len(endings) < 2:
        raise ValueError(f"{where}: a row must have `endings` or ending0 to ending3, but has {_names(row)} instead.")
    return [str(ending) for ending in endings]


def _span_example(row: Row, path: Path, *, has_answer: bool) -> Example:
    """A question; the `datasets` library keeps answers as parallel lists."""
    answers, where = row["answers"], f"{path}: question {row['id']}"
    if isinstance(answers, dict):
        pairs = zip(answers["text"], answers["answer_start"], strict=True)
        answers = [{"text": text, "answer_start": start} for text, start in pairs]
        check_answers(where, row["context"], answers)
    if has_answer and not answers:
        raise ValueError(f"{where}: a question must have an answer, but has none. Use --task squad-v2 for such files.")
    impossible = row.get("is_impossible", False) or not answers
    return {name: row[name] for name in ("id", "context", "question")} | {
        "answers": answers,
        "is_impossible": bool(impossible),
    }


def _tag_example(row: Row, index: int, where: str) -> Example:
    tags = row.get("tags", row.get("ner_tags"))
    if tags is None or len(tags) != len(row["tokens"]):
        raise ValueError(f"{where}: a sentence must have one tag a token, but has not.")
    for tag in tags:
        if not TAG.fullmatch(str(tag)):
            raise ValueError(f"{where}: a tag must be O, B-X or I-X, but is {tag!r} instead.")
    return {"id": str(index), "tokens": list(row["tokens"]), "tags": [str(tag) for tag in tags]}


def _column(row: Row, names: Columns, where: str, *, required: bool) -> Any | None:
    """The value of the first column present."""
    for name in names:
        if name in row:
            return row[name]
    if required:
        raise ValueError(f"{where}: a row must have a column {' or '.join(names)}, but has {_names(row)} instead.")
    return None


def _names(row: Row) -> str:
    """The column names of a row, for messages."""
    return ", ".join(name for name in row if name != "_line")


def tag_names(examples: list[Example]) -> tuple[str, ...]:
    """All tags of the examples, O first, the rest in alphabetical order."""
    found = {tag for example in examples for tag in example["tags"]}
    return ("O", *sorted(found - {"O"}))
