"""From a task's row and a folder to examples: plain dicts of text, the same for every source format.

    classification, regression   {"id", "first", "second" or None, "label": int, float or None}
    choice                       {"id", "first", "second", "endings": [str] * n, "label": int or None}
    spans                        {"id", "context", "question", "answers": [{"text", "answer_start"}], "is_impossible"}
    tags                         {"id", "tokens": [str], "tags": [str]}

A folder that lacks a split's files is an error that lists the files expected. Only a test split may lack labels,
answers or tags (None), and then in all rows of a file: it is predicted, not scored. A file to predict may lack any.
"""

from __future__ import annotations

import math
import re
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from megatron_alum.config.places import about
from megatron_alum.config.words import not_one_of
from megatron_alum.finetune.benchmarks.class_names import id_of
from megatron_alum.finetune.benchmarks.readers import (
    TAG,
    TAG_FORMS,
    Row,
    check_answers,
    form_of,
    form_of_own_file,
    read_rows,
)
from megatron_alum.finetune.benchmarks.tasks import TASKS, Columns, Task

Example = dict[str, Any]
GOLD_OF = {"spans": "answers", "tags": "tags"}  # what a model predicts; "label" for the other kinds
FLAG_OF = {"train": "--train-file", "dev": "--validation-file", "test": "--test-file", "predict": "--predict-file"}
ENDING = re.compile(r"ending\d+")
WHOLE = re.compile(r"-?\d+\.0")


def load_split(task: Task, data_dir: str | Path, split: str) -> list[Example]:
    """All examples of one split, in the order of the files.

    Raises: ValueError for a missing file (naming what was looked for) or a malformed row (naming file and line).
    """
    if split == "train" and task.train_parts:
        return [example for part in task.train_parts for example in load_split(TASKS[part], data_dir, "train")]
    return [example for part in load_parts(task, data_dir, split) for example in part]


def load_parts(task: Task, data_dir: str | Path, split: str) -> list[list[Example]]:
    """The examples of each file of a split, as `load_split`."""
    with _about_files(task, split):
        return [_examples_of(task, path, split) for path in find_files(task, data_dir, split)]


def _about_files(task: Task, split: str) -> AbstractContextManager[None]:
    """Errors of the body begin with the option that named the files of a split, if an option did."""
    return about(FLAG_OF[split]) if task.own_files else nullcontext()


def raw_labels(task: Task, data_dir: str | Path) -> list[str]:
    """The stripped label of every training row of a task of the user's own; empty ones are left out."""
    found = []
    with _about_files(task, "train"):
        for path in find_files(task, data_dir, "train"):
            for index, row in enumerate(read_rows(path, form_of_own_file(path, task.kind))):
                where = f"{path}:{row.get('_line', index + 1)}"
                found.append(_label_text(_column(row, task.label, where, required=True), where))
    return [label for label in found if label]


def has_split(task: Task, data_dir: str | Path, split: str) -> bool:
    """Whether the files of a split exist; for files that the user names this is true, and reading reports missing
    ones."""
    if task.own_files:
        return split in task.files
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
        raise ValueError(not_one_of(f"--split of {task.name}", split, task.files))
    if task.own_files:
        path = Path(task.files[split][0])
        if path.is_file() or (path / "state.json").is_file():
            return [path]
        flag = FLAG_OF[split]
        raise ValueError(f"{flag} must be a file, but {path} {'is a folder' if path.is_dir() else 'does not exist'}.")
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
    if task.own_files:
        form = form_of_own_file(path, task.kind)
    is_test, gold = split.startswith(("test", "predict")), GOLD_OF.get(task.kind, "label")
    # A submission needs every row of a test file.
    rows = read_rows(path, form, task.header, skip_short=task.skips_short_rows and not is_test)
    examples, unlabelled = [], []
    for index, row in enumerate(rows):
        where = f"{path}:{row.get('_line', index + 1)}"
        if task.kind == "spans":
            example: Example | None = _span_example(task, row, index, path)
        elif task.kind == "tags":
            example = _tag_example(task, row, index, where)
        else:
            example = _text_example(task, row, index, where, requires_label=not is_test)
        if example is not None:
            examples.append(example)
            if example[gold] is None:
                unlabelled.append(where)
    _check_distinct(task, path, examples)
    if split != "predict" and unlabelled and not (is_test and len(unlabelled) == len(examples)):
        named = f"{gold} must" if gold != "label" else "the label must"
        raise ValueError(f"{unlabelled[0]}: {named} be given in every row of {split}, but one has none.")
    return examples


def _answers(answers: Any, where: str) -> list[Row]:
    """A question's answers from a list of objects, or an object of parallel lists."""
    try:
        if isinstance(answers, dict):
            pairs = list(zip(answers["text"], answers["answer_start"], strict=True))
        else:
            pairs = [(answer["text"], answer["answer_start"]) for answer in answers]
        return [{"text": text + "", "answer_start": int(start)} for text, start in pairs]
    except (TypeError, ValueError, KeyError):
        raise ValueError(
            f"{where}: answers must be objects of `text` and `answer_start`, or one of two such lists, "
            f"but are {str(answers)[:60]!r} instead."
        ) from None


def _check_distinct(task: Task, path: Path, examples: list[Example]) -> None:
    """Raise where two questions have one id: answers go by ids."""
    ids = [example["id"] for example in examples] if task.kind == "spans" else []
    if len(set(ids)) < len(ids):
        twice = next(key for key in ids if ids.count(key) > 1)
        raise ValueError(f"{path}: a question must have an id of its own, but {ids.count(twice)} have {twice!r}.")


def _text_example(task: Task, row: Row, index: int, where: str, *, requires_label: bool) -> Example | None:
    """A text or pair, or a choice; None for a row whose label is dropped."""
    raw = _column(row, task.label, where, required=requires_label)
    if str(raw) in task.dropped_labels:
        return None
    second = None
    if task.second is not None:
        second = _text(_column(row, task.second, where, required=task.kind != "choice"), where, task.kind == "choice")
    endings = _endings(row, where) if task.kind == "choice" else []
    example: Example = {
        "id": str(row.get("index", row.get("uid", row.get("id", index)))),
        "first": _text(_column(row, task.first, where, required=True), where),
        "second": second,
        "label": _label(task, raw, where, len(endings)),
    }
    return {**example, "endings": endings} if endings else example


def _text(value: Any, where: str, optional: bool = False) -> str:
    """A cell's text; numbers as they are written, an empty cell as "" if `optional`.

    Raises: ValueError for null, lists and objects, whose text would be Python's representation.
    """
    if value is None and optional:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        found = "null" if value is None else f"a {type(value).__name__} ({str(value)[:40]})"
        raise ValueError(f"{where}: a text must be a string, but is {found} instead.")
    if isinstance(value, float) and math.isnan(value):
        raise ValueError(f"{where}: a text must be a string, but is NaN instead.")
    return str(value)


def _label_text(raw: Any, where: str) -> str:
    """A label's stripped text; "" for null and NaN.

    Raises: ValueError for lists and objects.
    """
    if isinstance(raw, (list, dict)):
        found = f"a {type(raw).__name__} ({str(raw)[:40]})"
        raise ValueError(f"{where}: a label must be a string or a number, but is {found} instead.")
    return "" if raw is None or (isinstance(raw, float) and math.isnan(raw)) else str(raw).strip()


def _label(task: Task, raw: Any, where: str, num_endings: int) -> int | float | None:
    """The class id, score or candidate of a raw label; None where a file has none."""
    text = _label_text(raw, where)
    if task.kind != "regression" and WHOLE.fullmatch(text) and text not in task.labels:
        text = text.partition(".")[0]  # pandas writes whole numbers beside an empty cell as 1.0
    name = task.synonyms.get(text, text)
    if name in task.labels:
        return task.labels.index(name)
    if text in task.missing_labels:
        return None
    written = id_of(text, task.labels, task.synonyms)
    if written is not None:
        return written
    if task.labels:
        raise ValueError(not_one_of(f"{where}: the label", raw, task.labels))
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
    endings = row.get("endings")
    if endings is None:
        names = sorted((name for name in row if ENDING.fullmatch(name)), key=lambda name: int(name[6:]))
        endings = [row[name] or None for name in names]
    while isinstance(endings, list) and endings and endings[-1] is None:  # fewer candidates than the table has columns
        endings.pop()
    if not isinstance(endings, list) or len(endings) < 2:
        raise ValueError(
            f"{where}: a row must have a list of two or more `endings`, or ending0, ending1, ..., "
            f"but has {_names(row)} instead."
        )
    return [_text(ending, where) for ending in endings]


def _span_example(task: Task, row: Row, index: int, path: Path) -> Example:
    """A question; the `datasets` library keeps answers as parallel lists. No answers at all are None."""
    row = {"id": str(index), **row}
    missing = [name for name in ("id", "context", "question") if not isinstance(row.get(name), (str, int))]
    if missing:
        at = f"{path}:{row.get('_line', row['id'])}"
        raise ValueError(f"{at}: a row must have {missing[0]}, but has {_names(row)} instead.")
    answers, where = row.get("answers"), f"{path}: question {row['id']}"
    if answers is None:
        answers = [] if row.get("is_impossible") else None
    if answers is not None:
        answers = _answers(answers, where)
        check_answers(where, row["context"], answers)
    if answers == [] and not task.impossible:
        raise ValueError(f"{where}: a question must have an answer, but has none. Use --task squad-v2 for such files.")
    impossible = row.get("is_impossible", False) or answers == []
    return {name: row[name] for name in ("id", "context", "question")} | {
        "answers": answers,
        "is_impossible": bool(impossible),
    }


def _tag_example(task: Task, row: Row, index: int, where: str) -> Example:
    tokens, tags = row.get("tokens", row.get(task.first[0])), row.get("tags", row.get("ner_tags"))
    tags = row.get(task.label[0]) if tags is None else tags
    if not isinstance(tokens, list):
        raise ValueError(f"{where}: a sentence must have a list of `tokens`, but has {_names(row)} instead.")
    if tags is not None and (not isinstance(tags, list) or len(tags) != len(tokens)):
        raise ValueError(f"{where}: a sentence must have one tag per token, but has not.")
    for tag in tags or ():
        if not TAG.fullmatch(str(tag)):
            raise ValueError(f"{where}: a tag must be one of {TAG_FORMS}, but is {tag!r} instead.")
    named = None if tags is None else [str(tag) for tag in tags]
    return {"id": str(index), "tokens": [_text(token, where) for token in tokens], "tags": named}


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
