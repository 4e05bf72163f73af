"""Output of wikiextractor: `<doc id="12" url="..." title="Anarchism">`, a line with the title, the text, `</doc>`.

The text is taken as extracted, its title line included; its section headings are lines of their own. A <doc> without
its end is rejected. Text outside of the documents is not expected and is counted, before the first as a rejected
record, after another as left out of that one.
"""

import html
import re
from collections.abc import Iterator
from itertools import pairwise

from megatron_alum.data.readers.base import Document, Rejected, decode, repairs_of
from megatron_alum.data.readers.records import RecordReader

OUTSIDE = "text outside <doc>"
_START = b"\n<doc "
_LINE_START = re.compile(r"\n<doc ")
_HEAD = re.compile(r"<doc ([^\n]*)>\r?\n?")
_ID = re.compile(r'\bid="([^"]*)"')
_END = "</doc>"


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
    body = element[head.end() : end]
    repairs = repairs_of(body, damaged)
    return Document(key, body, (*repairs, OUTSIDE) if element[end + len(_END) :].strip() else repairs)
