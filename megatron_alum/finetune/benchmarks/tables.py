"""Rows of the formats that keep a cell's type: JSON, JSON lines, Parquet, and a split saved by the `datasets` library.

A row is a dict with its number, or its line, as `_line`. Malformed content is a ValueError with file and line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_alum.config.extras import require
from megatron_alum.finetune.benchmarks.lines import numbered_lines

Row = dict[str, Any]


def read_json(path: Path) -> Iterator[Row]:
    """Rows of a JSON file: a list of objects, an object with such a list as `data`, pandas' tables, or JSON lines."""
    text = "\n".join(line for _, line in numbered_lines(path))
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        if text.lstrip().startswith("{"):
            return read_jsonl(path)
        raise ValueError(f"{path}:{error.lineno} must be JSON, but does not parse: {error.msg}.") from None
    if isinstance(content, dict):
        content = _rows_of_object(content)
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise ValueError(f"{path} must hold a list of JSON objects, but holds something else.")
    return ({**row, "_line": number} for number, row in enumerate(content, start=1))


def _rows_of_object(content: dict[str, Any]) -> Any:
    """The rows of an object: its `data`; a table by columns, as pandas and the `datasets` library
    write it, or split from its column names.
    """
    data, columns = content.get("data", [content]), content.get("columns")
    if isinstance(columns, list) and isinstance(data, list):
        return [dict(zip(columns, row, strict=True)) for row in data]
    if content and all(isinstance(column, dict) for column in content.values()):
        keys = next(iter(content.values()))
        return [{name: column.get(key) for name, column in content.items()} for key in keys]
    lists = [column for column in content.values() if isinstance(column, list)]
    if len(content) == len(lists) > 1 and len({len(column) for column in lists}) == 1:
        return [dict(zip(content, row, strict=True)) for row in zip(*lists, strict=True)]
    return data


def read_jsonl(path: Path) -> Iterator[Row]:
    """Rows of a file with one JSON object a line."""
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number} must be a JSON object, but does not parse: {error.msg}.") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{number} must be a JSON object, but is a {type(row).__name__} instead.")
        yield {**row, "_line": number}


def read_parquet(path: Path) -> Iterator[Row]:
    """Rows of a Parquet file; class labels written by the `datasets` library are given by name."""
    require("pyarrow")
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} must be a Parquet file, but is not: {str(error).splitlines()[0]}") from None
    info = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}")).get("info") or {}
    names = _names_of_classes(info.get("features"))
    return (_row_with_names(row, names, number) for number, row in enumerate(table.to_pylist(), start=1))


def read_arrow(folder: Path) -> Iterator[Row]:
    """Rows of one split saved by the `datasets` library; ClassLabel columns are given by name, -1 as -1."""
    require("pyarrow")
    import pyarrow

    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    info = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
    names = _names_of_classes(info.get("features"))
    number = 0
    for file in state["_data_files"]:
        with pyarrow.memory_map(str(folder / file["filename"])) as source, pyarrow.ipc.open_stream(source) as reader:
            for batch in reader:
                for row in batch.to_pylist():
                    number += 1
                    yield _row_with_names(row, names, number)


def _names_of_classes(features: Any) -> dict[str, list[str]]:
    """{column: class names} of those columns of the `datasets` library's `features` that have some."""
    return {column: labels for column, spec in (features or {}).items() if (labels := _class_names(spec))}


def _row_with_names(row: Row, names: dict[str, list[str]], number: int) -> Row:
    """A row with the names of its classes instead of their ids, and its number as `_line`."""
    named = {column: _named(row[column], labels) for column, labels in names.items() if column in row}
    return {**row, **named, "_line": number}


def _class_names(spec: Any) -> list[str] | None:
    """The class names of a ClassLabel feature, or of a sequence of them; None for any other feature."""
    if isinstance(spec, list):
        spec = spec[0]
    if isinstance(spec, dict) and "feature" in spec:
        spec = spec["feature"]
    return spec.get("names") if isinstance(spec, dict) and spec.get("_type") == "ClassLabel" else None


def _named(value: Any, names: list[str]) -> Any:
    """Class names of class ids, element by element in lists; -1, which means no label, stays."""
    if isinstance(value, list):
        return [_named(item, names) for item in value]
    return names[value] if value is not None and value >= 0 else value
