"""What a reader is: a file cut into chunks that any process can read, and a chunk turned into documents.

The two halves exist for speed and for restarts. `chunks` runs in the one coordinating process and must be cheap: it
names byte ranges of a plain file, whole small compressed files, or hands over bytes it had to decompress. `documents`
runs in a worker. Chunks depend on the file alone (never on the number of workers), so chunk n of a file is the same
in every run.

Nothing is lost between the two, and each of these is checked while a run goes on:

    the chunks of a file are intervals [offset, end) of its stored bytes: the first begins at 0, each begins where the
    one before it ended, the last ends at the size of the file (`plan.py`, which also counts a file without records)
    a worker reads its interval to the end, or fails (`records.py`)
    whatever stands in a chunk comes out as a Document or as a Rejected with its reason (`worker.py` counts both)

A part of a document that is left out or altered has its reason in `Document.repairs` and is counted too.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from megatron_alum.data.shards.names import INVALID_UTF8

CHUNK_BYTES = 1 << 20
"""Uncompressed bytes after which a chunk ends at the next record: small enough to balance, large enough to amortise."""
MAX_RECORD_BYTES = 16 << 20
"""A longer document is skipped and counted: memory stays bounded (the longest Wikipedia article has 2 MB)."""
OVERSIZE = f"longer than {MAX_RECORD_BYTES >> 20} MiB"


@dataclass(frozen=True, slots=True)
class Document:
    """One article: text with newlines between paragraphs, before cleaning."""

    id: str
    text: str
    repairs: tuple[str, ...] = ()
    """why the text is not all that the record holds, each counted by reason in the manifest"""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that is no document, and why; counted by reason in the manifest."""

    id: str
    reason: str
    broken: bool = True
    """False for records that are skipped by rule (redirects, other namespaces), which no reader could use."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of one input file: `span` (bytes or row groups) of the file, or `data`, or the whole file when both
    None."""

    path: str
    ordinal: int = 0
    """position among the chunks of this file, from 0"""
    offset: int = 0
    """byte of the file (as stored, compressed) where the chunk begins: progress and the division into shards"""
    end: int = 0
    """byte of the file where the next chunk begins, its size for the last one; may equal `offset` for a chunk that
    was decompressed from bytes read before"""
    span: tuple[int, int] | None = None
    data: bytes | None = None
    format: str | None = None
    """format of `data` where the file's own reader does not read it: a member of an archive"""
    rejected: str | None = None
    """why the chunk, which is one record, cannot be read"""

    @property
    def name(self) -> str:
        """How messages call this chunk."""
        return f"{self.path} at byte {self.offset}"


class Unreadable(ValueError):
    """A file whose content no reader takes as it is; the message names what was found and what helps."""

    def __init__(self, message: str, found: str) -> None:
        super().__init__(message)
        self.found = found
        """what was found, in a few words, for a member of an archive that is counted and passed over"""


class Reader(Protocol):
    """One format. Raises ValueError for a file that is broken as a whole; yields Rejected for a broken record."""

    def chunks(self, path: Path) -> Iterator[Chunk]:
        """Cut `path` into chunks in order."""

    def documents(self, chunk: Chunk) -> Iterator[Document | Rejected]:
        """The documents of a chunk in order."""


def tile(path: Path, pieces: Iterable[Chunk]) -> Iterator[Chunk]:
    """`pieces` of the file at `path`, each with its `end`, with ordinals and intervals that tile the file.

    A decompressor reads ahead, so a piece begins where the file stood when the one before it was complete. The last
    one ends at the size of the file: what follows the last record belongs to it. A file without a piece is one chunk
    without records.
    """
    held: Chunk | None = None
    ordinal = begin = 0
    for piece in pieces:
        if held is not None:
            yield replace(held, ordinal=ordinal, offset=begin)
            ordinal, begin = ordinal + 1, held.end
        held = replace(piece, end=max(begin, piece.end))
    size = path.stat().st_size
    last = held if held is not None else Chunk(str(path), data=b"")
    yield replace(last, ordinal=ordinal, offset=begin, end=size)


def decode(data: bytes) -> tuple[str, bool]:
    """(text, damaged): UTF-8 without the byte-order mark of some editors, every undecodable byte replaced by U+FFFD."""
    try:
        return data.decode("utf-8-sig"), False
    except UnicodeDecodeError:
        return data.decode("utf-8-sig", "replace"), True


def repairs_of(text: str, damaged: bool) -> tuple[str, ...]:
    """`Document.repairs` of a stretch of a decoded text that was `damaged` somewhere."""
    return (INVALID_UTF8,) if damaged and "\ufffd" in text else ()
