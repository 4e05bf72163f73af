"""What a reader is: a file cut into chunks that any process can read, and a chunk turned into documents.

The two halves exist for speed and for restarts. `chunks` runs in the one coordinating process and must be cheap: it
names byte ranges of a plain file, whole small compressed files, or hands over bytes it had to decompress. `documents`
runs in a worker. Chunks depend on the file alone (never on the number of workers), so chunk n of a file is the same
in every run.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

CHUNK_BYTES = 1 << 20
"""Uncompressed bytes after which a chunk ends at the next record: small enough to balance, large enough to amortise."""
MAX_RECORD_BYTES = 16 << 20
"""A longer document is skipped and counted: memory stays bounded (the longest Wikipedia article has 2 MB)."""


@dataclass(frozen=True, slots=True)
class Document:
    """One article: text with newlines between paragraphs, before cleaning."""

    id: str
    text: str
    damaged: bool = False
    """True when bytes that are no UTF-8 were replaced by U+FFFD."""


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
    ordinal: int
    """position among the chunks of this file, from 0"""
    offset: int
    """byte of the file (as stored, compressed) where the chunk begins: progress and the division into shards"""
    span: tuple[int, int] | None = None
    data: bytes | None = None
    oversize: bool = False
    """the chunk is one record that is too long to read"""

    @property
    def name(self) -> str:
        """How messages call this chunk."""
        return f"{self.path} at byte {self.offset}"


class Reader(Protocol):
    """One format. Raises ValueError for a file that is broken as a whole; yields Rejected for a broken record."""

    def chunks(self, path: Path) -> Iterator[Chunk]:
        """Cut `path` into chunks in order."""

    def documents(self, chunk: Chunk) -> Iterator[Document | Rejected]:
        """The documents of a chunk in order."""


def decode(data: bytes) -> tuple[str, bool]:
    """(text, damaged): UTF-8 without the byte-order mark of some editors, every undecodable byte replaced by U+FFFD."""
    try:
        return data.decode("utf-8-sig"), False
    except UnicodeDecodeError:
        return data.decode("utf-8-sig", "replace"), True
