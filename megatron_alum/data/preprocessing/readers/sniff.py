"""Recognises first bytes that no reader accepts: archives, other encodings, JSON over
several lines, tables, web pages.

Every function looks at the head of a decompressed file and raises `Unreadable` with one sentence: the file, what was
found in it, and the command or flag that helps. A wrong guess that succeeds by accident (a table read as lines of text,
a Latin-1 text without its umlauts) would go unnoticed in millions of documents.
"""

import csv
import json
import re
import shlex
import unicodedata
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from megatron_alum.data.preprocessing.readers.base import Unreadable
from megatron_alum.data.preprocessing.readers.encodings import probable_encoding
from megatron_alum.data.preprocessing.readers.streams import COMPRESSED, broken_file, compression_of, stored_compression

SAMPLE_BYTES = 1 << 20
"""Number of decompressed bytes of a file that are examined."""
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\v\f\r\x1b"))
_MAX_CONTROLS = 0.01
"""Share of control characters above which bytes are not text: a single NUL in a file is cleaned away."""
_MAX_UNDECODABLE = 0.05
"""Share of bytes that are not UTF-8 above which a file is in another encoding, or binary."""
_MAX_FOREIGN = 0.2
"""The same share for a short file with little valid UTF-8 beyond ASCII."""
_MIN_FOREIGN = 8
_ISO_2022 = re.compile(rb"\x1b(?:\$[@AB]|\$[()][A-G]|\([IJ])")
"""Escapes that switch the characters of Japanese, Chinese and Korean mail, in seven bits."""
_SAMPLE_LINES = 50
_UNPACK = "Unpack it ({command}) and give that folder instead"
_CONTAINERS: tuple[tuple[bytes, str, str], ...] = (
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK.format(command="7z x -o{stem} {path}")),
    (b"PK\x03\x04", "a zip archive (or an office document)", _UNPACK.format(command="unzip {path} -d {stem}")),
    (b"PK\x05\x06", "an empty zip archive", "Leave it out of --input"),
    (b"Rar!\x1a\x07", "a rar archive", _UNPACK.format(command="unrar x {path} {stem}/")),
    (b"\x04\x22\x4d\x18", "lz4 data", "Decompress it (lz4 -dc < {path} > {stem}) first"),
    (b"LZIP\x01", "lzip data", "Decompress it (lzip -dc < {path} > {stem}) first"),
    (b"\x5d\x00\x00", "data of the old lzma format", "Decompress it (xz --format=lzma -dc < {path} > {stem}) first"),
    (b"\x1f\x9d", "data of the old compress program", "Decompress it (gzip -dc < {path} > {stem}) first"),
    (b"\xff\x06\x00\x00sNaPpY", "snappy data", "Decompress it first"),
    (b"ARROW1", "an Arrow file", "Save it as parquet (datasets: to_parquet) instead"),
    (b"Obj\x01", "an Avro file", "Save it as JSON lines or parquet instead"),
    (b"\x89HDF", "an HDF5 file", "Save its text as JSON lines or parquet instead"),
    (b"SQLite format 3\x00", "an SQLite database", "Save its text as JSON lines instead"),
    (b"\x93NUMPY", "a NumPy array", "Save its text as JSON lines instead"),
    (b"%PDF-", "a PDF document", "Extract its text (pdftotext {path}) first"),
    (b"MMIDIDX", "Megatron's index of a finished corpus", "Give the raw text instead"),
)
_BYTE_ORDER_MARKS = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
_MARKUP: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"<!doctype html|<(?:html|head|body|p|div|h[1-6]|table|meta)\b[^<>]*>", re.IGNORECASE), "an HTML page"),
    (re.compile(r"<\?xml|<!DOCTYPE "), "XML that is no MediaWiki export"),
    (re.compile(r"WARC/\d"), "a web archive (WARC, WET)"),
    (re.compile(r"-- (?:MySQL|MariaDB|PostgreSQL)|-- +\n-- PostgreSQL"), "an SQL dump"),
    (re.compile(r"\{\\rtf"), "an RTF document"),
    (re.compile(r"version https://git-lfs\."), "a Git LFS pointer instead of the file (git lfs pull fetches it)"),
)
_TABLE_TO_LINES = (
    "{from}python -c \"import csv, json; csv.field_size_limit(2**30); file = open(0, newline='', "
    "encoding='utf-8-sig'); [print(json.dumps(row)) for row in {rows}]\"{input} > {stem}.jsonl"
)
_CONVERT = "Convert it ({from}iconv -f {encoding} -t UTF-8{input} > {stem}.utf8)"
_DECOMPRESS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
_TABLE_SUFFIXES = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
_COLUMN = re.compile(r"[A-Za-z_]\w*")
_TABLE_CHARS = 100_000
_NAME_CHARS = 40
_JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
_AS_IT_IS = "Give --format text or --format lines to take it as it is"
_LENIENT = json.JSONDecoder(strict=False)


def refuse(path: Path, found: str, remedy: str, *, details: str = "") -> Unreadable:
    """The sentence for a file that holds `found`, and `details` of this one file, by which many are not counted apart.

    The commands in `remedy` can be given to a shell as they stand: {path} is the file, {stem} a name for what is
    written, and {from} and {input} bring the file, decompressed, to a program that reads its standard input.
    """
    stem = base_stem(path)
    if path.name in (stem, f"{stem}.jsonl"):
        stem += "-converted"  # a shell empties the file it writes to before the command reads it
    quoted = shlex.quote(str(path))
    packed = stored_compression(path) if path.is_file() else ""
    begin, source = (f"{_DECOMPRESS[packed]} -dc < {quoted} | ", "") if packed else ("", f" < {quoted}")
    for name, value in (("path", quoted), ("stem", shlex.quote(stem)), ("from", begin), ("input", source)):
        remedy = remedy.replace(f"{{{name}}}", value)
    return Unreadable(
        f"`{path}` must be text in a known format (see --format), but holds {found}{details}. {remedy}, or leave it "
        "out of --input.",
        found,
    )


def check_bytes(head: bytes, path: Path) -> None:
    """Refuse archives, binary data and encodings other than UTF-8."""
    for magic, found, remedy in _CONTAINERS:
        if head.startswith(magic):
            raise refuse(path, found, remedy)
    if compression_of(head):
        raise refuse(path, "data that was compressed twice", "Decompress it once (to see how: file {path})")
    encoding = unicode_encoding(head)
    if encoding:
        raise refuse(path, f"{encoding} text, not UTF-8", _CONVERT.replace("{encoding}", encoding))
    controls = len(head) - len(head.translate(None, _CONTROLS))
    if controls > max(8, len(head) * _MAX_CONTROLS):
        if path.suffix.lower() in COMPRESSED:
            raise broken_file(path, "it does not begin as one")
        raise refuse(path, "binary data", "Convert it to text")
    _check_utf8(head, path)


def unicode_encoding(head: bytes) -> str | None:
    """UTF-16 or UTF-32, by its byte-order mark or by the zeros that ASCII has in it; ISO-2022, by its escapes."""
    for mark, name in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return name
    if b"\x1b" in head and _ISO_2022.search(head):
        return "ISO-2022-KR" if b"\x1b$)C" in head else "ISO-2022-CN" if b"\x1b$)" in head else "ISO-2022-JP"
    if 0 not in head:
        return None
    even, odd = head[::2].count(0), head[1::2].count(0)
    if max(even, odd) > 0.3 * len(head) / 2 and min(even, odd) < 0.1 * max(even, odd):
        return "UTF-16LE" if odd > even else "UTF-16BE"
    controls = len(head) - len(head.translate(None, _CONTROLS))
    if controls > _MAX_FOREIGN * len(head) or not _is_utf8(head):
        return next((name for name in ("UTF-16LE", "UTF-16BE") if _is_text_in(head, name)), None)
    return None


def _is_text_in(head: bytes, encoding: str) -> bool:
    """Whether `head` is UTF-16 text with little ASCII: only known characters, white space among them."""
    try:
        text = head[: len(head) // 2 * 2].decode(encoding)
    except UnicodeDecodeError as error:
        if error.end < len(head) - 3:  # do not cut a surrogate pair at the end of the sample
            return False
        text = head[: error.start].decode(encoding)
    kinds = {unicodedata.category(character) for character in set(text) - set("\n\r\t\ufeff")}
    return not set(text).isdisjoint("\n ") and kinds.isdisjoint({"Cc", "Cn", "Co", "Cs"})


def _check_utf8(head: bytes, path: Path) -> None:
    """Refuse text that is more Latin-1, or another encoding, than UTF-8; a few stray bytes do not count.

    Letters of Latin-1 occur beside ASCII letters; bytes damaged by chance occur beside anything.
    """
    if head.startswith(b"\xef\xbb\xbf") or _is_utf8(head):
        return
    text = head.decode("utf-8", "surrogateescape")
    stray = len(re.findall("[\udc80-\udcff]", text))
    in_words = len(re.findall("[A-Za-z][\udc80-\udcff]|[\udc80-\udcff][A-Za-z]", text))
    whole = len(re.findall("[^\x00-\x7f\udc80-\udcff]", text))
    is_foreign = stray > max(_MIN_FOREIGN, len(head) * _MAX_FOREIGN)
    is_western = in_words >= 2
    if stray > max(64, len(head) * _MAX_UNDECODABLE) or (stray > whole and (is_foreign or is_western)):
        name = probable_encoding(head, text)
        raise refuse(
            path,
            f"text that is not UTF-8, probably {name}",
            _CONVERT.replace("{encoding}", name.split()[0]),
            details=f" ({stray} stray bytes in the first {len(head)})",
        )


def _is_utf8(head: bytes) -> bool:
    try:
        head.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def check_markup(text: str, path: Path) -> None:
    """Refuse machine-readable files, which would be read as sentences."""
    for pattern, found in _MARKUP:
        if pattern.match(text):
            raise refuse(path, found, "Extract its text first, give --format text to take it as it is")
    if "\n" not in text and text.count("\r") > 1:
        raise refuse(path, "lines that end in CR alone", "Convert them ({from}tr '\\r' '\\n'{input} > {stem}.lines)")


def is_json_lines(text: str, path: Path, *, whole: bool, text_key: str) -> bool:
    """Whether `text`, the beginning (or `whole`) of a file without leading white space, is JSON lines.

    Arrays, objects over several lines, several objects in a line, and files without `text_key` are refused.
    """
    is_named = base_suffix(path) in _JSON_SUFFIXES
    if not text.startswith(("{", "[")):
        if is_named and not text.startswith("<"):
            raise refuse(path, "no JSON objects, despite its name", _AS_IT_IS)
        return False
    lines = text.split("\n")
    if not whole and len(lines) == 1 and text.startswith("{"):
        return True  # the first line is longer than the sample
    objects = list(_objects(lines[:1])) or _check_json_shape(text, path, whole=whole)
    fields: dict[str, int] = {}
    ways: list[str] = []
    for record in chain(objects, _objects((lines if whole else lines[:-1])[1:_SAMPLE_LINES])):
        if text_key in record:
            return True
        ways.append(_filter_of(record))
        for name, value in record.items():
            fields[name] = fields.get(name, 0) + (len(value) if isinstance(value, str) else 0)
    if len(ways) == 1 and ways[0]:
        raise refuse(path, f"JSON objects inside of one (at {ways[0]})", _to_lines(ways[0]))
    if fields:
        raise _wrong_key(fields, path, text_key)
    if is_named or text.startswith('{"'):
        raise refuse(path, "no line that is a JSON object with a text", "Repair it, " + _AS_IT_IS.replace("G", "g", 1))
    return False


def _objects(lines: list[str]) -> Iterator[dict[str, Any]]:
    """The JSON objects among `lines`."""
    for line in lines:
        if line.lstrip().startswith("{"):
            try:
                yield _LENIENT.decode(line)
            except (ValueError, RecursionError):
                continue


def _to_lines(way: str) -> str:
    """The remedy for JSON whose objects jq finds at `way`."""
    return f"Write one object a line ({{from}}jq -c {shlex.quote(way)}{{input}} > {{stem}}.jsonl)"


def _filter_of(record: dict[str, Any]) -> str:
    """jq's way to the objects inside one object: ".data[]" for a list of them, ".[]" where each field is one."""
    for name, value in record.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return f".{json.dumps(name, ensure_ascii=False)}[]"
    return ".[]" if record and all(isinstance(value, dict) for value in record.values()) else ""


def _wrong_key(fields: dict[str, int], path: Path, text_key: str) -> Unreadable:
    """The error for a file of which no line has `text_key`; `fields` are present, with their numbers of characters."""
    best = max(fields, key=lambda name: fields[name])
    hint = f"Give --text-key {best}" if fields[best] else "Write one object with a text a line"
    names = ", ".join(list(fields)[:20])
    return Unreadable(
        f"`--text-key` must name a field of {path}, but its lines have no {text_key!r}; their fields are {names}. "
        f"{hint}, or leave the file out of --input.",
        f"JSON without the field {text_key!r} (fields: {names})",
    )


def _check_json_shape(text: str, path: Path, *, whole: bool) -> list[dict[str, Any]]:
    """Refuse JSON whose first line is not a whole object; returns no objects for broken JSON or plain text."""
    if re.match(r'\[\s*"(?:[^"\\]|\\.)*"\s*[,\]]', text):
        raise refuse(path, "one JSON array of strings", _to_lines(".[] | {text: .}"))
    begin = re.match(r"\[\s*(?=\{)", text)
    try:
        value, end = _LENIENT.raw_decode(text, begin.end() if begin else 0)
    except (ValueError, RecursionError):
        is_cut = not whole and (begin or text.startswith("{\n"))  # an object longer than the sample
        value, end = ({} if is_cut else None), len(text)
    if not isinstance(value, dict):
        return []
    fields = f" (fields: {', '.join(list(value)[:20])})" if value else ""
    if begin:
        raise refuse(path, f"one JSON array{fields}", _to_lines(".[]"))
    rest = text[end : end + 20].lstrip()
    if "\n" in text[:end]:
        found = "JSON over several lines"
    elif rest.startswith(","):
        raise refuse(
            path,
            f"JSON objects with commas between them{fields}",
            "Remove those ({from}sed 's/,$//'{input} > {stem}.jsonl)",
        )
    else:
        found = "several JSON objects a line" if rest.startswith("{") else "JSON with something behind it"
    raise refuse(path, f"{found}{fields}", _to_lines(_filter_of(value) or "."))


def check_table(text: str, path: Path, *, whole: bool, text_key: str) -> None:
    """Refuse CSV and TSV: by the file's name, by an equal number of tabs in every line, or by a header
    of plain names that includes `text_key` or has two rows below it."""
    suffix = base_suffix(path)
    lines = text[:_TABLE_CHARS].split("\n")
    rows = {delimiter: _rows(lines if whole else lines[:-1], delimiter) for delimiter in "\t,;|"}
    for delimiter, found in rows.items():
        is_even = len(found) > 1 and len(found[0]) > 1 and len({len(row) for row in found}) == 1
        is_header = len(found) > 2 and all(map(_COLUMN.fullmatch, found[0]))
        if is_even and (delimiter == "\t" or suffix == ".csv" or text_key in found[0] or is_header):
            raise _table(found[0], path, delimiter)
    if suffix in _TABLE_SUFFIXES:
        delimiter = _TABLE_SUFFIXES[suffix]
        raise _table(_rows(lines[:1], delimiter)[0], path, delimiter)


def _table(first: list[str], path: Path, delimiter: str) -> Unreadable:
    kind = "a TSV table" if delimiter == "\t" else "a CSV table"
    names = ", ".join(cell[:40] for cell in first[:20])
    sign = "\\t" if delimiter == "\t" else delimiter
    if all(map(_is_name, first[1:])) and not first[0].isdigit():
        found, keys = f"{kind} (columns: {names})", "name its column by --text-key"
        rows = f"csv.DictReader(file, delimiter='{sign}')"
    else:
        found, keys = f"{kind} without a header (first row: {names})", "name its column by --text-key 0, 1, ..."
        rows = f"map(dict, map(enumerate, csv.reader(file, delimiter='{sign}')))"
    return refuse(
        path,
        found,
        f"Write it as JSON lines ({_TABLE_TO_LINES.replace('{rows}', rows)}) and {keys}, give --format lines to take "
        "every line as a document",
    )


def _is_name(cell: str) -> bool:
    """Whether a cell can be the name of a column: neither a number nor a sentence."""
    return 0 < len(cell) <= _NAME_CHARS and not cell.isdigit() and cell[-1] not in ".!?"


def _rows(lines: list[str], delimiter: str) -> list[list[str]]:
    """The first rows of a table with this delimiter; none if it has a NUL or an overlong field."""
    try:
        rows = csv.reader((line + "\n" for line in lines[:_SAMPLE_LINES] if line.strip()), delimiter=delimiter)
        return [row for row in rows if row]
    except csv.Error:
        return []


def base_suffix(path: Path) -> str:
    """The suffix for a file's content, ignoring that of its compression."""
    inner = Path(path.stem) if path.suffix.lower() in COMPRESSED else path
    return inner.suffix.lower()


def base_stem(path: Path) -> str:
    """The name of a file without its last suffix and without that of its compression."""
    inner = Path(path.stem) if path.suffix.lower() in COMPRESSED else path
    return inner.stem
