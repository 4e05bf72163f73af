"""Rows of text from the file formats in which the benchmarks are published. A row is a dict of named strings or values.

    tsv        tab-separated, quotes are ordinary characters (GLUE, SciTail); with or without a header line
    quoted_tsv tab-separated as pandas and spreadsheets write it: quotes are used if the file is quoted consistently
    csv        comma-separated with quoting and a header line (SWAG)
    jsonl      one JSON object per line (SNLI, MNLI, ANLI, FEVER as NLI, HellaSWAG)
    json       a list of JSON objects, an object whose `data` is one, or JSON lines
    parquet    as the `datasets` library and pandas write it
    conll      one `token<TAB>tag` per line, sentences separated by empty lines (BC2GM, NCBI-disease, JNLPBA)
    squad      the official SQuAD JSON
    arrow      a split folder written by the `datasets` library's save_to_disk

`.gz`, `.bz2` and `.xz` are decompressed. A malformed row is a ValueError with file and line; nothing is skipped
silently (QQP's short rows are counted and reported).
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron_alum.finetune.benchmarks.lines import OPENERS, numbered_lines
from megatron_alum.finetune.benchmarks.tables import Row, read_arrow, read_json, read_jsonl, read_parquet

LARGEST_CELL = 2**31 - 1  # characters; the csv module's own limit of 131,072 is below a long document
TAG = re.compile(r"O|[BIES](-\S+)?")  # BIO and BIOES, with or without an entity type
TAG_FORMS = "O, B-X, I-X, of BIOES also E-X, S-X"


def read_tsv(path: Path, header: tuple[str, ...] | None, *, skip_short: bool = False) -> Iterator[Row]:
    """Rows of a tab-separated file; `header` names the columns of a file without a header line.

    Even then, a first line equal to a header (`index<TAB>sentence`, GLUE's test files) is taken as one. With
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


def read_csv(path: Path, delimiter: str = ",") -> Iterator[Row]:
    """Rows of a quoted file with a header line; empty lines are left out."""
    csv.field_size_limit(LARGEST_CELL)
    lines = (line + "\n" for _, line in numbered_lines(path))
    reader = csv.reader(lines, strict=True, delimiter=delimiter)
    columns: list[str] | None = None
    try:
        for cells in reader:
            if not "".join(cells).strip():
                continue
            if columns is None:
                columns = _distinct(path, cells)
                continue
            if len(cells) != len(columns):
                raise ValueError(
                    f"{path}:{reader.line_num} must have {len(columns)} columns ({', '.join(columns)}), "
                    f"but has {len(cells)} instead."
                )
            yield {**dict(zip(columns, cells, strict=True)), "_line": reader.line_num}
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num} must be CSV, but is not: {error}.") from None
    if columns is None:
        raise ValueError(f"{path}:1 must be a header line, but the file is empty.")


def _distinct(path: Path, columns: list[str]) -> list[str]:
    """The names of a header line without blanks around them, each of which must name one column; a spreadsheet's empty
    columns have none.
    """
    columns = [name.strip() for name in columns]
    for name in filter(None, columns):
        if columns.count(name) > 1:
            raise ValueError(f"{path}:1 must name each column once, but has {name!r} {columns.count(name)} times.")
    return columns


def read_quoted_tsv(path: Path) -> Iterator[Row]:
    """Rows of a tab-separated file in which quotes may enclose cells.

    They do, unless that changes the rows although the plain lines fit: then they are ordinary characters.
    """
    plain, problem = _all_or_error(read_tsv(path, None))
    quoted, _ = _all_or_error(read_csv(path, "\t"))
    if quoted is not None and (plain is None or len(plain) == len(quoted)):
        return iter(quoted)
    if plain is None:
        assert problem is not None
        raise problem
    return iter(plain)


def _all_or_error(rows: Iterator[Row]) -> tuple[list[Row] | None, ValueError | None]:
    try:
        return list(rows), None
    except ValueError as error:
        return None, error


def read_conll(path: Path) -> Iterator[Row]:
    """Sentences {"tokens", "tags"}; the tag is the last column, -DOCSTART- lines are left out.

    If the first line is only a token, the file has no tags: they are None.
    """
    tokens: list[str] = []
    tags: list[str] = []
    start, tagged = 1, None
    for number, line in numbered_lines(path):
        if not line.strip() or line.startswith("-DOCSTART-"):
            if tokens:
                yield {"tokens": tokens, "tags": tags if tagged else None, "_line": start}
            tokens, tags, start = [], [], number + 1
            continue
        cells = line.split("\t") if "\t" in line else line.split()
        tagged = len(cells) > 1 if tagged is None else tagged
        if tagged and (len(cells) < 2 or not TAG.fullmatch(cells[-1])):
            raise ValueError(
                f"{path}:{number} must be a token, a tab and a tag ({TAG_FORMS}), but is {line!r} instead."
            )
        if not tagged and len(cells) > 1:
            raise ValueError(f"{path}:{number} must be only a token, as the lines before it, but is {line!r} instead.")
        tokens.append(cells[0])
        tags.append(cells[-1])
    if tokens:
        yield {"tokens": tokens, "tags": tags if tagged else None, "_line": start}


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
        return json.loads("\n".join(line for _, line in numbered_lines(path)))
    except json.JSONDecodeError as error:
        where = f"{path}:{error.lineno}:{error.colno}"
        raise ValueError(f"{where} must be SQuAD JSON, but does not parse: {error.msg}.") from None


def _squad_question(path: Path, context: str, question: Row) -> Row:
    answers = question.get("answers")
    if answers is not None:
        answers = [{"text": a["text"], "answer_start": a["answer_start"]} for a in answers]
        check_answers(f"{path}: question {question['id']}", context, answers)
    return {
        "id": question["id"],
        "context": context,
        "question": question["question"],
        "answers": answers,
        "is_impossible": bool(question.get("is_impossible", False)),
    }


def check_answers(where: str, context: str, answers: Sequence[Row]) -> None:
    """Raise ValueError unless each answer's text is in the context at its `answer_start`."""
    for answer in answers:
        text, start = answer["text"], answer["answer_start"]
        if not text:
            raise ValueError(f"{where}: an answer must have a text, but one has none. No answers at all are `[]`.")
        if not (start >= 0 and context.startswith(text, start)):
            found = context[max(start, 0) :][: len(text)]
            raise ValueError(
                f"{where}: the answer must be at its `answer_start` {start} as {text!r}, but {found!r} is there."
            )


def read_rows(
    path: Path, form: str, header: tuple[str, ...] | None = None, *, skip_short: bool = False
) -> Iterator[Row]:
    """Rows of `path`; `form` is a name of the table in this file's head, and a folder is always arrow.

    `header` and `skip_short` apply to tsv files (`read_tsv`).

    Raises: ValueError for an unknown form.
    """
    if path.is_dir():
        return read_arrow(path)
    readers: dict[str, Callable[[Path], Iterator[Row]]] = {
        "quoted_tsv": read_quoted_tsv,
        "csv": read_csv,
        "jsonl": read_jsonl,
        "json": read_json,
        "parquet": read_parquet,
        "conll": read_conll,
        "squad": read_squad,
    }
    if form == "tsv":
        return read_tsv(path, header, skip_short=skip_short)
    if form not in readers:
        raise ValueError(f"`form` must be tsv, {', '.join(readers)}, but is {form!r} instead.")
    return readers[form](path)


def form_of(path: Path, default: str) -> str:
    """The form that a file's name tells (.tsv, .csv, .jsonl, before .gz, .bz2 or .xz), else `default`."""
    return {".tsv": "tsv", ".csv": "csv", ".jsonl": "jsonl", ".txt": "tsv"}.get(suffix_of(path), default)


def suffix_of(path: Path) -> str:
    """The last ending of a file's name in lower case, ignoring that of its compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in OPENERS]
    return suffixes[-1] if suffixes else ""


OWN_FORMS = {
    **{".tsv": "quoted_tsv", ".txt": "quoted_tsv", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"},
    **{".json": "json", ".parquet": "parquet"},
}


def form_of_own_file(path: Path, kind: str) -> str:
    """The form of a user's file by its name; tags may also be one per line (.conll, .txt, .tsv), spans are SQuAD's
    JSON. A folder is a split saved by the `datasets` library.

    Raises: ValueError for another ending.
    """
    suffix = suffix_of(path)
    if path.is_dir():
        return "arrow"
    if kind == "tags" and suffix not in (".csv", ".json", ".jsonl", ".ndjson", ".parquet"):
        return "conll"
    if kind == "spans" and suffix == ".json":
        content = _parsed(path)
        articles = content.get("data") if isinstance(content, dict) else None
        return "squad" if articles and "paragraphs" in articles[0] else "json"
    if suffix not in OWN_FORMS:
        endings = f"{', '.join(OWN_FORMS)} (also before {', '.join(OPENERS)})"
        raise ValueError(f"{path} must end in {endings} to be read, but does not.")
    return OWN_FORMS[suffix]
