"""Output of wikiextractor: `<doc id="12" url="..." title="Anarchism">`, a line with the title, the text, `</doc>`.

The text is taken as extracted, its title line included; its section headings are lines of their own. Version 3 writes
"&" and angle brackets as entities ("AT&amp;T") and leaves some tags ("< br >", <templatestyles>) behind, in its JSON
too: `plain_text` undoes both. A <doc> without its end is rejected. Text outside of the documents is not expected and is
counted, before the first as a rejected record, after another as left out of that one.
"""

import html
import re
from collections.abc import Iterator
from itertools import pairwise

from megatron_alum.data.preprocessing.readers.base import Document, Rejected, decode, repairs_of
from megatron_alum.data.preprocessing.readers.records import RecordReader
from megatron_alum.data.preprocessing.readers.wikitext.elements import EXTENSIONS

OUTSIDE = "text outside <doc>"
_START = b"\n<doc "
_LINE_START = re.compile(r"\n<doc ")
_HEAD = re.compile(r"<doc ([^\n]*)>\r?\n?")
_ID = re.compile(r'\bid="([^"]*)"')
_END = "</doc>"
_BREAK = re.compile(r"<[ \t]*/?[ \t]*(?:br|hr)\b[^<>]{0,200}>", re.IGNORECASE)
_LEFT_TAG = re.compile(rf"</?(?:{'|'.join(sorted(EXTENSIONS))}|wbr)\b[^<>]*>", re.IGNORECASE)


def is_record(record: dict[str, object]) -> bool:
    """Whether a JSON object is one of `wikiextractor --json`: page, revision (since version 3) and address."""
    return record.keys() >= {"id", "url", "title", "text"} and ("revid" in record or "curid=" in str(record["url"]))


def plain_text(text: str) -> str:
    """Extracted text without the entities and tags that wikiextractor leaves; text of older versions stays as it is."""
    if "&" in text:
        text = html.unescape(text)
    return _LEFT_TAG.sub("", _BREAK.sub("\n", text)) if "<" in text else text


class WikiextractorReader(RecordReader):
    """`--format wikiextractor`."""

    def next_record(self, data: bytes, begin: int) -> int:
        """The next line that begins with <doc and a space."""
        found = data.find(_START, begin - 1)
        return found + 1 if found >= 0 else -1

    def parse(self, data: bytes, name: str) -> Iterator[Document | Rejected]:
        """One document a <doc> element."""
        text, damaged = decode(data)
        starts = [0] if text.startswith("<doc ") else []
        starts += [match.end() - len("<doc ") for match in _LINE_START.finditer(text)]
        if text[: starts[0] if starts else len(text)].strip():
            yield Rejected(name, OUTSIDE)
        for start, stop in pairwise([*starts, len(text)]):
            yield _element(text[start:stop], name, damaged)


def _element(element: str, name: str, damaged: bool) -> Document | Rejected:
    head = _HEAD.match(element)
    if head is None:
        return Rejected(name, "unreadable <doc> line")
    identity = _ID.search(head[1])
    key = html.unescape(identity[1]) if identity else name
    end = element.rfind(_END)
    if end < 0:
        return Rejected(key, "<doc> without </doc>")
    body = plain_text(element[head.end() : end])
    repairs = repairs_of(body, damaged)
    return Document(key, body, (*repairs, OUTSIDE) if element[end + len(_END) :].strip() else repairs)
