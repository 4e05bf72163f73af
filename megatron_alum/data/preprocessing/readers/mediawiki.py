"""MediaWiki XML exports (`pages-articles.xml`, plain or compressed, multistream too): articles as plain text.

Kept are pages of the article namespace (0) in wikitext. Redirects, other namespaces, other content models,
disambiguation pages and pages that are empty once their markup is gone are skipped by rule and counted. A page that
is no well-formed XML is counted as broken, with its id, and the others go on. Of several revisions the last counts.

A multistream .bz2 is cut at its streams and decompressed by the workers. Streams need not begin with a page: a page
belongs to the stream its first byte lies in, and a worker reads on into the following streams to complete its last
page.

A dump that ends without </mediawiki> was cut short, as by a download that broke off: nothing else shows it where the
cut lies between two pages. It is counted as a broken record.
"""

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import IO

from megatron_alum.data.preprocessing.readers.base import (
    MAX_RECORD_BYTES,
    OVERSIZE,
    Chunk,
    Document,
    Rejected,
    decode,
    repairs_of,
)
from megatron_alum.data.preprocessing.readers.records import RecordReader
from megatron_alum.data.preprocessing.readers.streams import (
    bz2_stream_starts,
    open_stream,
    read_bz2_span,
    stored_compression,
)
from megatron_alum.data.preprocessing.readers.wikitext import Wiki, clean_by_parser, clean_wikitext
from megatron_alum.data.preprocessing.readers.wikitext.pages import EMPTY, NO_REVISION, skip_reason, wiki_of_head

CLEANERS: dict[str, Callable[[str, Wiki, str], str]] = {
    "fast": clean_wikitext,
    "mwparserfromhell": clean_by_parser,
}
STREAM_GROUP_BYTES = 300_000
"""Compressed bytes of streams that make a chunk: one of Wikimedia's streams (100 pages) on average."""
_PAGE, _PAGE_END = b"<page>", b"</page>"
_ID = re.compile(r"<id>\s*(\d+)\s*</id>")
_HEAD_BYTES = 64 << 10
_DUMP, _DUMP_END = b"<mediawiki", b"</mediawiki>"
_EDGE_BYTES = 1 << 10
"""Within which of its first, or last, bytes a dump has those."""
CUT_SHORT = "a dump that ends without </mediawiki>, cut short (fetch it again, or what is missing stays out)"


class MediawikiReader(RecordReader):
    """`--format mediawiki`; `cleaner` is a key of CLEANERS."""

    def __init__(self, cleaner: str = "fast") -> None:
        self._clean = CLEANERS[cleaner]

    def next_record(self, data: bytes, begin: int) -> int:
        """The next <page>."""
        return data.find(_PAGE, begin)

    def chunks(self, path: Path) -> Iterator[Chunk]:
        """Groups of streams of a multistream .bz2; other files as any record format."""
        starts = bz2_stream_starts(path) if stored_compression(path) == ".bz2" else []
        if len(starts) < 2:
            yield from super().chunks(path)
            return
        bounds, size = [0], path.stat().st_size
        for start in starts[1:]:
            if start - bounds[-1] >= STREAM_GROUP_BYTES and size - start >= STREAM_GROUP_BYTES:
                bounds.append(start)
        for ordinal, span in enumerate(pairwise([*bounds, size])):
            yield Chunk(str(path), ordinal, *span, span=span)
        if _is_cut_short(path, starts):
            yield Chunk(str(path), len(bounds), size, size, rejected=CUT_SHORT)

    def blocks(self, stream: IO[bytes], begun: bytes = b"") -> Iterator[tuple[int, bytes | str]]:
        """Stretches of whole pages, and the reason why the dump is broken when it lacks its end."""
        head = tail = None
        for size, block in super().blocks(stream, begun):
            head = block[:_EDGE_BYTES] if head is None else head
            tail = block[-_EDGE_BYTES:]
            yield size, block
        if isinstance(head, bytes) and isinstance(tail, bytes) and _DUMP in head and _DUMP_END not in tail:
            yield 0, CUT_SHORT

    def documents(self, chunk: Chunk) -> Iterator[Document | Rejected]:
        """The articles whose pages begin in the chunk."""
        if chunk.span is not None and stored_compression(Path(chunk.path)) == ".bz2":
            pages, is_whole = _pages_of_streams(Path(chunk.path), chunk.span)
            yield from self.parse(pages, chunk.name)
            if not is_whole:
                yield Rejected(chunk.name, OVERSIZE)
        else:
            yield from super().documents(chunk)

    def parse(self, data: bytes, name: str) -> Iterator[Document | Rejected]:
        """One document or rejection a <page>."""
        text, damaged = decode(data)
        wiki = wiki_of_dump(name.rpartition(" at byte ")[0])
        for source in _pages(text):
            yield self._page(source, repairs_of(source, damaged), wiki)

    def _page(self, source: str, repairs: tuple[str, ...], wiki: Wiki) -> Document | Rejected:
        found = _ID.search(source)
        key = found[1] if found else "page without id"
        try:
            page = ET.fromstring(source)
        except ET.ParseError as error:
            return Rejected(key, f"page is no well-formed XML ({error})".split(":")[0] + ")")
        revision = page.findall("revision")[-1:]
        if not revision:
            return Rejected(key, NO_REVISION, broken=False)
        text = revision[0].findtext("text") or ""
        reason = skip_reason(page, revision[0], text, wiki)
        if reason is not None:
            return Rejected(key, reason, broken=False)
        cleaned = self._clean(text, wiki, page.findtext("title", ""))
        return Document(key, cleaned, repairs) if cleaned else Rejected(key, EMPTY, broken=False)


def _pages(text: str) -> Iterator[str]:
    """Every <page> element; one that lacks its end ends where the next one begins."""
    opening, closing = _PAGE.decode(), _PAGE_END.decode()
    begin = text.find(opening)
    while begin >= 0:
        following = text.find(opening, begin + len(opening))
        stop = following if following >= 0 else len(text)
        end = text.find(closing, begin, stop)
        yield text[begin : end + len(closing) if end >= 0 else stop]
        begin = following


def _pages_of_streams(path: Path, span: tuple[int, int]) -> tuple[bytes, bool]:
    """Decompressed bytes from the first page that begins in the streams of `span` to the end of the last one, and
    whether that one is among them: it is not when it is too long.

    Wikimedia ends its streams at pages, so that what follows is seldom read: a whole block would be decompressed.
    """
    data = read_bz2_span(path, span)
    limit = len(data) + len(_PAGE) - 1  # a tag that begins in these streams may end behind them
    following = _following(path, span[1])
    if any(data.endswith(_PAGE[:size]) for size in range(1, len(_PAGE))):
        data += next(following, b"")
    first, last = data.find(_PAGE, 0, limit), data.rfind(_PAGE, 0, limit)
    if first < 0:
        return b"", True
    while (end := data.find(_PAGE_END, last)) < 0 and len(data) - last <= MAX_RECORD_BYTES:
        piece = next(following, b"")
        if not piece:
            return data[first:], True
        data += piece
    if end < 0:
        return data[first:last], False
    other = data.find(_PAGE, last + len(_PAGE), end)  # of the next streams, when the last page here lacks its end
    return data[first : other if other >= 0 else end + len(_PAGE_END)], True


def _is_cut_short(path: Path, starts: list[int]) -> bool:
    """Whether the dump in the streams that begin at `starts` lacks its end, which Wikimedia gives a stream of its
    own."""
    with open_stream(path) as stream:
        if _DUMP not in stream.read(_EDGE_BYTES):
            return False
    tail, stop = b"", path.stat().st_size
    for start in reversed(starts):
        tail, stop = read_bz2_span(path, (start, stop)) + tail, start
        if len(tail) >= _EDGE_BYTES:
            break
    return _DUMP_END not in tail[-_EDGE_BYTES:]


def _following(path: Path, start: int) -> Iterator[bytes]:
    """Decompressed pieces of the streams from byte `start` on."""
    with path.open("rb") as raw:
        raw.seek(start)
        with open_stream(path, source=raw) as stream:
            while piece := stream.read(_HEAD_BYTES):
                yield piece


@lru_cache(maxsize=8)
def wiki_of_dump(path: str) -> Wiki:
    """The wiki that a dump was taken from, by the head of the file."""
    if not Path(path).is_file():
        return wiki_of_head("")
    with open_stream(Path(path)) as stream:
        return wiki_of_head(stream.read(_HEAD_BYTES).decode("utf-8", "replace"))
