"""Rows of text from the file formats in which the benchmarks are published. A row is a dict of named strings or values.

    tsv        tab-separated, quotes are ordinary characters (GLUE, SciTail); with or without a header line
    csv        comma-separated with quoting and a header line (SWAG)
    jsonl      one JSON object a line (SNLI, MNLI, ANLI, FEVER as NLI, HellaSWAG)
    conll      one `token<TAB>tag` a line, sentences separated by empty lines (BC2GM, NCBI-disease, JNLPBA)
    squad      the official SQuAD JSON
    arrow      a split folder written by the `datasets` library's save_to_disk

`.gz` and `.bz2` are opened as they are. A malformed row is a ValueError with file and line; nothing is skipped
silently (QQP's short rows are counted and reported).
"""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

Row = dict[str, Any]
TAG = re.compile(r"O|[BIES](-\S+)?")  # BIO and BIOES, with or without an entity type


def open_text(path: Path) -> IO[str]:
    """A UTF-8 text stream of a plain, .gz or .bz2 file; a byte order mark is dropped, newlines are kept as they are."""
    openers: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open}
    opener = openers.get(path.suffix, open)
    return cast(IO[str], opener(path, "rt", encoding="utf-8-sig", newline=""))


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, line without its end).

    Raises: ValueError with file and line for bytes that are not UTF-8, or a damaged archive.
    """
    number = 0
    try:
        with open_text(path) as stream:
            for number, line in enumerate(stream, start=1):
                yield number, line.rstrip("\r\n")
    except (UnicodeDecodeError, EOFError, zlib.error, OSError) as error:
        raise _unreadable(f"{path}:{number + 1}", error) from None


def _unreadable(where: str, error: Exception) -> Exception:
    """The sentence for damaged bytes; a failure of the file system (OSError with a number) stays what it is."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    return ValueError(f"{where} must be readable UTF-8 text, but is not: {error}.")


def read_tsv(path: Path, header: tuple[str, ...] | None, *, skip_short: bool = False) -> Iterator[Row]:
    """Rows of a tab-separated file; `header` names the columns of a file without a header line.

    A first line equal to a header (`index<TAB>sentence`, GLUE's test files) is taken as one even then. With
    `skip_short`, rows with too few columns are left out and their number is printed.
    """
    columns: list[str] | None = None
    num_skipped = 0
    for number, line in numbered_lines(path):
        cells = line.split("\t")
        if columns is None:
            if header is None or cells[0] in ("index", "id"):
                columns = cells
                continue
            columns = list(header)
        if not line:
            continue
        if skip_short and len(cells) < len(columns):
            num_skipped += 1
            continue
        if len(cells) != len(columns):
            raise ValueError(
                f"{path}:{number} must have {len(columns)} tab-separated columns ({', '.join(columns)}), "
                f"but has {len(cells)} instead."
            )
        yield {**dict(zip(columns, cells, strict=True)), "_line": number}
    if num_skipped:
        print(f"{path}: {num_skipped} rows with fewer than {len(columns or ())} columns are skipped")


def read_csv(path: Path) -> Iterator[Row]:
    """Rows of a comma-separated file with a header line."""
    lines = (line + "\n" for _, line in numbered_lines(path))
    reader = csv.reader(lines, strict=True)
    try:
        columns = next(reader)
        for cells in reader:
            if len(cells) != len(columns):
                raise ValueError(
                    f"{path}:{reader.line_num} must have {len(columns)} columns ({', '.join(columns)}), "
                    f"but has {len(cells)} instead."
                )
            yield {**dict(zip(columns, cells, strict=True)), "_line": reader.line_num}
    except StopIteration:
        raise ValueError(f"{path}:1 must be a header line, but the file is empty.") from None
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num} must be CSV, but is not: {error}.") from None


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


def read_conll(path: Path) -> Iterator[Row]:
    """Sentences {"tokens", "tags"}; the tag is the last column, -DOCSTART- lines are left out."""
    tokens: list[str] = []
    tags: list[str] = []
    start = 1
    for number, line in numbered_lines(path):
        if not line.strip() or line.startswith("-DOCSTART-"):
            if tokens:
                yield {"tokens": tokens, "tags": tags, "_line": start}
            tokens, tags, start = [], [], number + 1
            continue
        cells = line.split("\t") if "\t" in line else line.split()
        if len(cells) < 2 or not TAG.fullmatch(cells[-1]):
            raise ValueError(
                f"{path}:{number} must be a token, a tab and a tag (O, B-X, I-X), but is {line!r} instead."
            )
        tokens.append(cells[0])
        tags.append(cells[-1])
    if tokens:
        yield {"tokens": tokens, "tags": tags, "_line": start}


def read_squad(path: Path) -> Iterator[Row]:
    """Questions {"id", "context", "question", "answers", "is_impossible"} of a SQuAD file.

    Raises: ValueError naming file and place of malformed JSON, or the question whose answer is not at its
    `answer_start`.
    """
    data, place = _parsed(path), "the top level"
    try:
        for i, article in enumerate(data["data"]):
            place = f"data[{i}]"
            for j, paragraph in enumerate(article["paragraphs"]):
                place = f"data[{i}].paragraphs[{j}]"
                context = paragraph["context"]
                for k, question in enumerate(paragraph["qas"]):
                    place = f"data[{i}].paragraphs[{j}].qas[{k}]"
                    yield _squad_question(path, context, question)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: {place} must be as in SQuAD's JSON (data, paragraphs, context, qas, id, question, answers), "
            f"but is not: {error!r}."
        ) from None


def _parsed(path: Path) -> Any:
    """The content of a JSON file.

    Raises: ValueError with file, line and column.
    """
    try:
        with open_text(path) as stream:
            return json.load(stream)
    except json.JSONDecodeError as error:
        where = f"{path}:{error.lineno}:{error.colno}"
        raise ValueError(f"{where} must be SQuAD JSON, but does not parse: {error.msg}.") from None
    except (UnicodeDecodeError, EOFError, zlib.error, OSError) as error:
        raise _unreadable(str(path), error) from None


def _squad_question(path: Path, context: str, question: Row) -> Row:
    answers = [{"text": a["text"], "answer_start": a["answer_start"]} for a in question.get("answers", [])]
    check_answers(f"{path}: question {question['id']}", context, answers)
    return {
        "id": question["id"],
        "context": context,
        "question": question["question"],
        "answers": answers,
        "is_impossible": bool(question.get("is_impossible", False)),
    }


def check_answers(where: str, context: str, answers: Sequence[Row]) -> None:
    """Raise ValueError unless each answer's text stands in the context at its `answer_start`."""
    for answer in answers:
        text, start = answer["text"], answer["answer_start"]
        if not (text and start >= 0 and context.startswith(text, start)):
            found = context[max(start, 0) :][: len(text)]
            raise ValueError(
                f"{where}: the answer must stand at its `answer_start` {start} as {text!r}, but {found!r} does instead."
            )


def read_arrow(folder: Path) -> Iterator[Row]:
    """Rows of one split saved by the `datasets` library; ClassLabel columns come as their names, -1 as -1."""
    import pyarrow

    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    features = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8")).get("features") or {}
    names = {column: labels for column, spec in features.items() if (labels := _class_names(spec))}
    number = 0
    for file in state["_data_files"]:
        with pyarrow.memory_map(str(folder / file["filename"])) as source, pyarrow.ipc.open_stream(source) as reader:
            for batch in reader:
                for row in batch.to_pylist():
                    number += 1
                    for column, labels in names.items():
                        row[column] = _named(row[column], labels)
                    yield {**row, "_line": number}


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


def read_rows(
    path: Path, form: str, header: tuple[str, ...] | None = None, *, skip_short: bool = False
) -> Iterator[Row]:
    """Rows of `path`; `form` is a name of the table in this file's head, and a folder is always arrow.

    `header` and `skip_short` are of tsv files (`read_tsv`).

    Raises: ValueError for an unknown form.
    """
    if path.is_dir():
        return read_arrow(path)
    readers: dict[str, Callable[[Path], Iterator[Row]]] = {
        "csv": read_csv,
        "jsonl": read_jsonl,
        "conll": read_conll,
        "squad": read_squad,
    }
    if form == "tsv":
        return read_tsv(path, header, skip_short=skip_short)
    if form not in readers:
        raise ValueError(f"`form` must be tsv, {', '.join(readers)}, but is {form!r} instead.")
    return readers[form](path)


def form_of(path: Path, default: str) -> str:
    """The form that a file's name tells (.tsv, .csv, .jsonl, before .gz or .bz2), else `default`."""
    suffixes = [suffix for suffix in path.suffixes if suffix not in (".gz", ".bz2")]
    return {".tsv": "tsv", ".csv": "csv", ".jsonl": "jsonl", ".txt": "tsv"}.get(
        suffixes[-1] if suffixes else "", default
    )
