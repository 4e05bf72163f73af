"""JSON lines: one object a line with `text` and, if present, `id` or `title` (wikiextractor --json, datasets exports).

A line that is no JSON object, or has no string under `text`, is rejected with its id or its place; blank lines are no
records. Control characters that stand bare in a string (a NUL, a tab), which JSON forbids and many programs write, are
taken and counted: cleaning removes them from any text. Records of wikiextractor are known by their keys, and its
entities are resolved.
"""

import json
from collections.abc import Iterator

from megatron_alum.data.preprocessing.readers.base import Document, Rejected, decode, repairs_of
from megatron_alum.data.preprocessing.readers.records import LineReader
from megatron_alum.data.preprocessing.readers.wikiextractor import is_record, plain_text

BARE_CONTROL = "control characters inside a JSON string"
_LENIENT = json.JSONDecoder(strict=False)


class JsonLinesReader(LineReader):
    """`--format jsonl`; `text_key` names the field that holds the text."""

    def __init__(self, text_key: str = "text") -> None:
        self.text_key = text_key

    def parse(self, data: bytes, name: str) -> Iterator[Document | Rejected]:
        """One document or rejection a non-blank line."""
        text, damaged = decode(data)
        for number, line in enumerate(text.split("\n"), start=1):
            if line and not line.isspace():
                yield self._record(line, f"{name}, line {number} from there", repairs_of(line, damaged))

    def _record(self, line: str, place: str, repairs: tuple[str, ...]) -> Document | Rejected:
        try:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                record = _LENIENT.decode(line)
                repairs = (*repairs, BARE_CONTROL)
        except (ValueError, RecursionError):  # also a number of more digits, or a nesting, than Python reads
            return Rejected(place, "not JSON")
        if not isinstance(record, dict):
            return Rejected(place, "not a JSON object")
        identity = str(record.get("id") or record.get("title") or place)
        text = record.get(self.text_key)
        if not isinstance(text, str):
            return Rejected(identity, f"no string under {self.text_key!r}")
        if is_record(record):
            text = plain_text(text)
        return Document(identity, text, repairs)
