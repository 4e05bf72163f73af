"""Formats whose documents are stretches of a byte stream: lines, blank-line blocks, <doc> and <page> elements.

A subclass says where a record starts (`next_record`) and what a stretch of whole records contains (`parse`). The rest
is here, the same for every such format and every compression:

    plain file               byte ranges; a worker reads its own range
    small compressed file    the whole file is one chunk; a worker decompresses it
    other compressed file    decompressed by the coordinator, cut at records, handed over

A chunk ends at the first record start at or after CHUNK_BYTES. A record above MAX_RECORD_BYTES is passed over without
being held in memory and becomes a chunk of its own, which yields one Rejected.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import IO

from megatron_alum.data.preprocessing.readers.base import (
    CHUNK_BYTES,
    MAX_RECORD_BYTES,
    OVERSIZE,
    Chunk,
    Document,
    Rejected,
    tile,
)
from megatron_alum.data.preprocessing.readers.streams import open_stream, read_range, stored_compression

SMALL_COMPRESSED_BYTES = 2 << 20
"""A compressed file up to this size is one chunk (about 8 MB of text): workers decompress folders of such files."""
_READ_BYTES = 256 << 10
_OVERLAP_BYTES = 64
"""How far before the end of the bytes read so far a record start may begin and be incomplete."""
_MAX_BLANK_BYTES = 1 << 20
"""More white space than this in a record that is passed over does not end it."""


def is_small_compressed(path: Path) -> bool:
    """Whether workers decompress the file at `path` as a whole."""
    return path.stat().st_size <= SMALL_COMPRESSED_BYTES and stored_compression(path) != ""


class RecordReader(ABC):
    """Base of the record formats; the two methods to give are `next_record` and `parse`."""

    @abstractmethod
    def next_record(self, data: bytes, begin: int) -> int:
        """Start of the first record at or after byte `begin` > 0 of `data`, or -1."""

    @abstractmethod
    def parse(self, data: bytes, name: str) -> Iterator[Document | Rejected]:
        """The documents in `data`, whole records; `name` calls the place in messages."""

    def chunks(self, path: Path) -> Iterator[Chunk]:
        """Cut `path` into chunks, see the module's docstring."""
        if stored_compression(path) == "":
            yield from self._range_chunks(path)
        elif is_small_compressed(path):
            yield Chunk(str(path), 0, 0, path.stat().st_size)
        else:
            yield from self._inline_chunks(path)

    def documents(self, chunk: Chunk) -> Iterator[Document | Rejected]:
        """The documents of a chunk in order."""
        if chunk.rejected is not None:
            yield Rejected(chunk.name, chunk.rejected)
        elif chunk.data is not None:
            yield from self.parse(chunk.data, chunk.name)
        elif chunk.span is not None:
            yield from self.parse(read_range(Path(chunk.path), chunk.span), chunk.name)
        else:
            with open_stream(Path(chunk.path)) as stream:
                yield from self.stream_documents(stream, chunk.name)

    def stream_documents(self, stream: IO[bytes], name: str, begun: bytes = b"") -> Iterator[Document | Rejected]:
        """The documents of a whole file, of which `begun` has been read from `stream` before."""
        for _size, block in self.blocks(stream, begun):
            yield from self.parse(block, name) if isinstance(block, bytes) else [Rejected(name, block)]

    def _range_chunks(self, path: Path) -> Iterator[Chunk]:
        start = 0
        with path.open("rb") as stream:
            for ordinal, (size, block) in enumerate(self.blocks(stream)):
                span, start = (start, start + size), start + size
                yield Chunk(str(path), ordinal, *span, span=span, rejected=block if isinstance(block, str) else None)

    def _inline_chunks(self, path: Path) -> Iterator[Chunk]:
        raw = path.open("rb")
        with open_stream(path, source=raw) as stream:
            yield from tile(path, (replace(chunk, end=raw.tell()) for chunk in self.stream_chunks(stream, path)))

    def stream_chunks(
        self, stream: IO[bytes], path: Path, begun: bytes = b"", name: str | None = None
    ) -> Iterator[Chunk]:
        """Chunks with the bytes of `stream`, of which `begun` has been read, for the caller to place in the file at
        `path`; `name` is the format a worker reads them by, where it is not the file's."""
        for _size, block in self.blocks(stream, begun):
            chunk = Chunk(str(path), format=name)
            yield replace(chunk, data=block) if isinstance(block, bytes) else replace(chunk, rejected=block)

    def blocks(self, stream: IO[bytes], begun: bytes = b"") -> Iterator[tuple[int, bytes | str]]:
        """(size, bytes) of stretches of whole records; the reason in place of bytes that are passed over."""
        buffer, searched = b"", CHUNK_BYTES
        for piece in chain([begun], iter(lambda: stream.read(_READ_BYTES), b"")):
            buffer += piece
            while len(buffer) > searched:
                cut = self.next_record(buffer, searched)
                if cut >= 0:
                    yield cut, buffer[:cut]
                    buffer, searched = buffer[cut:], CHUNK_BYTES
                elif len(buffer) > CHUNK_BYTES + MAX_RECORD_BYTES:
                    kept = self._last_record(buffer, CHUNK_BYTES)
                    if kept:
                        yield kept, buffer[:kept]
                    skipped, buffer = self._pass_over(stream, buffer[kept:])
                    yield skipped, OVERSIZE
                    searched = CHUNK_BYTES
                else:
                    searched = max(CHUNK_BYTES, len(buffer) - _OVERLAP_BYTES)
                    break
        if buffer:
            yield len(buffer), buffer

    def _last_record(self, data: bytes, end: int) -> int:
        """Start of the last record that begins before byte `end` of `data`, 0 when the first is the only one."""
        last, found = 0, self.next_record(data, 1)
        while last < found < end:
            last, found = found, self.next_record(data, found + 1)
        return last

    def _pass_over(self, stream: IO[bytes], begun: bytes) -> tuple[int, bytes]:
        """Read on from `begun`, the head of a record, to the next one: (bytes passed over, what was read after
        them)."""
        passed, window = 0, begun
        while (cut := self.next_record(window, 1)) < 0:
            piece = stream.read(_READ_BYTES)
            if not piece:
                return passed + len(window), b""
            # blank lines separate documents of plain text, and may be long: the window holds on to all of their bytes
            blank = min(len(window) - len(window.rstrip()) + 1, _MAX_BLANK_BYTES)
            kept = window[-max(blank, _OVERLAP_BYTES) :]
            passed, window = passed + len(window) - len(kept), kept + piece
        return passed + cut, window[cut:]


class LineReader(RecordReader):
    """Base of the formats with one record a line."""

    def next_record(self, data: bytes, begin: int) -> int:
        """The byte after a newline; none after the last newline of `data`, where no record has begun."""
        newline = data.find(b"\n", begin - 1)
        return newline + 1 if 0 <= newline < len(data) - 1 else -1
