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
from itertools import chain
from pathlib import Path
from typing import IO

from megatron_alum.data.readers.base import CHUNK_BYTES, MAX_RECORD_BYTES, Chunk, Document, Rejected
from megatron_alum.data.readers.streams import COMPRESSED, open_stream

SMALL_COMPRESSED_BYTES = 2 << 20
"""A compressed file up to this size is one chunk (about 8 MB of text): workers decompress folders of such files."""
OVERSIZE = f"longer than {MAX_RECORD_BYTES >> 20} MiB"
_READ_BYTES = 256 << 10
_OVERLAP_BYTES = 64
"""How far before the end of the bytes read so far a record start may begin and be incomplete."""


def is_small_compressed(path: Path) -> bool:
    """Whether workers decompress the file at `path` as a whole."""
    return path.suffix.lower() in COMPRESSED and path.stat().st_size <= SMALL_COMPRESSED_BYTES


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
        if path.suffix.lower() not in COMPRESSED:
            yield from self._range_chunks(path)
        elif is_small_compressed(path):
            yield Chunk(str(path), 0, 0)
        else:
            yield from self._inline_chunks(path)

    def documents(self, chunk: Chunk) -> Iterator[Document | Rejected]:
        """The documents of a chunk in order."""
        if chunk.oversize:
            yield Rejected(chunk.name, OVERSIZE)
        elif chunk.data is not None:
            yield from self.parse(chunk.data, chunk.name)
        elif chunk.span is not None:
            with Path(chunk.path).open("rb") as stream:
                stream.seek(chunk.span[0])
                yield from self.parse(stream.read(chunk.span[1] - chunk.span[0]), chunk.name)
        else:
            with open_stream(Path(chunk.path)) as stream:
                yield from self.stream_documents(stream, chunk.name)

    def stream_documents(self, stream: IO[bytes], name: str, begun: bytes = b"") -> Iterator[Document | Rejected]:
        """The documents of a whole file, of which `begun` has been read from `stream` before."""
        for _size, block in self.blocks(stream, begun):
            yield from self.parse(block, name) if block is not None else [Rejected(name, OVERSIZE)]

    def _range_chunks(self, path: Path) -> Iterator[Chunk]:
        with path.open("rb") as stream:
            start = 0
            for ordinal, (size, block) in enumerate(self.blocks(stream)):
                yield Chunk(str(path), ordinal, start, span=(start, start + size), oversize=block is None)
                start += size

    def _inline_chunks(self, path: Path) -> Iterator[Chunk]:
        raw = path.open("rb")
        with open_stream(path, source=raw) as stream:
            offset = 0
            for ordinal, (_size, block) in enumerate(self.blocks(stream)):
                yield Chunk(str(path), ordinal, offset, data=block, oversize=block is None)
                offset = raw.tell()

    def blocks(self, stream: IO[bytes], begun: bytes = b"") -> Iterator[tuple[int, bytes | None]]:
        """(size, bytes) of stretches of whole records, the bytes None for a single record that is too long."""
        buffer, searched = b"", CHUNK_BYTES
        for piece in chain([begun], iter(lambda: stream.read(_READ_BYTES), b"")):
            buffer += piece
            while len(buffer) > searched:
                cut = self.next_record(buffer, searched)
                if cut >= 0:
                    yield cut, buffer[:cut]
                    buffer, searched = buffer[cut:], CHUNK_BYTES
                elif len(buffer) > CHUNK_BYTES + MAX_RECORD_BYTES:
                    kept = self._last_record(buffer[:CHUNK_BYTES])
                    if kept:
                        yield kept, buffer[:kept]
                    skipped, buffer = self._pass_over(stream, buffer[kept:])
                    yield skipped, None
                    searched = CHUNK_BYTES
                else:
                    searched = max(CHUNK_BYTES, len(buffer) - _OVERLAP_BYTES)
                    break
        if buffer:
            yield len(buffer), buffer

    def _last_record(self, data: bytes) -> int:
        """Start of the last record in `data`, 0 when the first is the only one."""
        last, found = 0, self.next_record(data, 1)
        while found > last:
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
            passed += max(0, len(window) - _OVERLAP_BYTES)
            window = window[-_OVERLAP_BYTES:] + piece
        return passed + cut, window[cut:]


class LineReader(RecordReader):
    """Base of the formats with one record a line."""

    def next_record(self, data: bytes, begin: int) -> int:
        """The byte after a newline; none after the last newline of `data`, where no record has begun."""
        newline = data.find(b"\n", begin - 1)
        return newline + 1 if 0 <= newline < len(data) - 1 else -1
