"""Tar archives: OpenWebText's layout (a tar whose members are .xz tars of .txt files), and tars of text or of JSON
lines, Wikipedia dumps and the like, compressed or not.

A .txt member is one document, whatever lines it has. Of the other members those are read whose format shows in their
first bytes (`detect.py`), archives among them; what is left (a README, a picture, a table) is rejected by its reason.

Small members side by side are a chunk: in an uncompressed archive a worker reads it straight from its place, of a
compressed one the coordinator packs it into an archive of its own. A large member is decompressed by the coordinator
and cut at its records like any large compressed file.
"""

import io
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from megatron_alum.data.preprocessing.readers import records
from megatron_alum.data.preprocessing.readers.base import (
    MAX_RECORD_BYTES,
    OVERSIZE,
    Chunk,
    Document,
    Reader,
    Rejected,
    Unreadable,
    decode,
    repairs_of,
    tile,
)
from megatron_alum.data.preprocessing.readers.records import RecordReader
from megatron_alum.data.preprocessing.readers.sniff import SAMPLE_BYTES, base_suffix, check_bytes
from megatron_alum.data.preprocessing.readers.streams import (
    COMPRESSED,
    broken_file,
    open_stream,
    read_range,
    stored_compression,
)

MAX_DEPTH = 4
"""Archives inside archives that are opened."""
_END_BYTES = 64 << 10
_PACKED = (*COMPRESSED, ".tgz")
_RATIO = 4
"""Bytes of text in a byte of a compressed member, about: it decides when a group is full, no more."""
Choose = Callable[[bytes, Path], str | None]
"""From a member's first bytes and name to its format, None without text; Unreadable for what is no text."""


def is_tar(head: bytes) -> bool:
    """Whether `head` begins with a member's header, which has a checksum of its own."""
    try:
        tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


class OpenWebTextReader:
    """`--format openwebtext`; `choose` finds the format of a member that is no .txt, `make` the reader of a format."""

    def __init__(self, choose: Choose, make: Callable[[str], Reader]) -> None:
        self._choose, self._make = choose, make

    def chunks(self, path: Path) -> Iterator[Chunk]:
        """Groups of small members, and the parts of large ones."""
        raw = path.open("rb")
        is_plain = stored_compression(path) == ""
        with open_stream(path, source=raw) as stream:
            pieces = self._pieces(stream, path, is_plain=is_plain)
            yield from tile(path, (replace(piece, end=raw.tell()) for piece in pieces))

    def documents(self, chunk: Chunk) -> Iterator[Document | Rejected]:
        """The documents of the chunk's members in order."""
        path = Path(chunk.path)
        if chunk.rejected is not None:
            yield Rejected(chunk.name, chunk.rejected)
        elif chunk.format is not None:
            yield from self._make(chunk.format).documents(chunk)
        elif chunk.data is not None or chunk.span is not None:
            data = chunk.data if chunk.data is not None else read_range(path, chunk.span or (0, 0))
            if data:
                yield from self._archive_documents(io.BytesIO(data), path, 0)
        else:
            with open_stream(path) as stream:
                yield from self._archive_documents(stream, path, 0)

    def _archive_documents(self, stream: IO[bytes], path: Path, depth: int) -> Iterator[Document | Rejected]:
        with _tar(stream, path) as archive:
            for member in archive:
                archive.members.clear()  # type: ignore[attr-defined]  # tarfile would keep a list of all of them
                yield from self._member_documents(archive, member, path, depth)

    def _member_documents(
        self, archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path, depth: int
    ) -> Iterator[Document | Rejected]:
        if not member.isfile():
            if not member.isdir():
                yield Rejected(member.name, "tar member that is a link or a device", broken=False)
            return
        with _content(archive, member, path) as (stream, head):
            name = Path(member.name)
            if base_suffix(name) == ".txt":
                yield _text(member.name, head, stream)
            elif is_tar(head) and depth < MAX_DEPTH:
                yield from self._archive_documents(_rejoined(head, stream), name, depth + 1)
            else:
                found = self._reader_of(head, name)
                if isinstance(found, Rejected):
                    yield found
                else:
                    yield from found[1].stream_documents(stream, f"{path}: {name}", head)

    def _pieces(self, stream: IO[bytes], path: Path, *, is_plain: bool, depth: int = 0) -> Iterator[Chunk]:
        """The chunks of an archive, for `tile` to place; `is_plain` when it stands uncompressed in the file at
        `path`."""
        group = _Group(path, is_plain=is_plain)
        with _tar(stream, path) as archive:
            for member in archive:
                archive.members.clear()  # type: ignore[attr-defined]
                if member.isfile() and member.size > records.SMALL_COMPRESSED_BYTES:
                    yield from group.take(member.offset)
                    yield from self._large(archive, member, path, depth)
                    continue
                yield from group.take(member.offset, if_full=True)
                group.add(archive, member)
            yield from group.take(archive.offset)

    def _large(self, archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path, depth: int) -> Iterator[Chunk]:
        """The chunks of a member that is too large for a group."""
        with _content(archive, member, path) as (stream, head):
            name = Path(member.name)
            if base_suffix(name) == ".txt":
                rest = stream.read(MAX_RECORD_BYTES + 1 - len(head))
                if len(head) + len(rest) > MAX_RECORD_BYTES:
                    yield Chunk(str(path), rejected=OVERSIZE)
                else:
                    yield Chunk(str(path), data=_archive_of(name, head + rest))
            elif is_tar(head) and depth < MAX_DEPTH:
                yield from self._pieces(_rejoined(head, stream), path, is_plain=False, depth=depth + 1)
            else:
                found = self._reader_of(head, name)
                if isinstance(found, Rejected):
                    yield Chunk(str(path), rejected=found.reason)
                else:
                    yield from found[1].stream_chunks(stream, path, head, found[0])

    def _reader_of(self, head: bytes, name: Path) -> tuple[str, RecordReader] | Rejected:
        """How to read a member that begins with `head`, or why it is not read."""
        try:
            found = self._choose(head, name)
        except Unreadable as error:
            return Rejected(str(name), f"tar member that holds {error.found}")
        if found is None:
            return Rejected(str(name), "no text")
        reader = self._make(found)
        if found == "parquet":
            return Rejected(str(name), "tar member that holds parquet, which is read outside of archives")
        if not isinstance(reader, RecordReader) or found in ("text", "lines"):
            return Rejected(str(name), f"tar member that is neither .txt nor in a known format ({name.suffix})")
        return found, reader


class _Group:
    """Small members side by side, until they are a chunk."""

    def __init__(self, path: Path, *, is_plain: bool) -> None:
        self._path, self._is_plain = path, is_plain
        self._begin: int | None = None
        self._size = 0
        self._clear()

    def _clear(self) -> None:
        self._begin, self._size = None, 0
        self._data = io.BytesIO()
        self._packed = None if self._is_plain else tarfile.open(fileobj=self._data, mode="w")

    def add(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        """Take the next member of `archive`."""
        self._begin = member.offset if self._begin is None else self._begin
        self._size += member.size * (_RATIO if member.name.lower().endswith(_PACKED) else 1)
        if self._packed is not None:
            self._packed.addfile(member, archive.extractfile(member) if member.isfile() else None)

    def take(self, end: int, *, if_full: bool = False) -> Iterator[Chunk]:
        """The chunk of the members so far, which end at byte `end` of the archive."""
        if self._begin is None or (if_full and self._size < records.CHUNK_BYTES):
            return
        if self._packed is None:
            yield Chunk(str(self._path), span=(self._begin, end))
        else:
            self._packed.close()
            yield Chunk(str(self._path), data=self._data.getvalue())
        self._clear()


@contextmanager
def _tar(stream: IO[bytes], path: Path) -> Iterator[tarfile.TarFile]:
    """The archive in `stream`, read from front to back, and to its very end when it is left without an error."""
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            yield archive
            _check_end(archive, stream, path)
    except tarfile.TarError as error:
        raise broken_file(path, error) from error


def _check_end(archive: Any, stream: IO[bytes], path: Path) -> None:
    """Read what follows the last member: zeros, unless archives were joined, of which tar shows the first alone."""
    while piece := archive.fileobj.read(_END_BYTES) or stream.read(_END_BYTES):
        if piece.strip(b"\0"):
            raise broken_file(path, "something follows its end; if archives were joined, give each by itself")


@contextmanager
def _content(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> Iterator[tuple[IO[bytes], bytes]]:
    """(decompressed content of a member after its head, its head)."""
    content = archive.extractfile(member)
    assert content is not None
    with open_stream(path / member.name, source=content) as stream:
        yield stream, stream.read(SAMPLE_BYTES)


def _text(name: str, head: bytes, stream: IO[bytes]) -> Document | Rejected:
    """The document in a .txt member."""
    try:
        check_bytes(head, Path(name))
    except Unreadable as error:
        return Rejected(name, f"tar member that holds {error.found}")
    data = head + stream.read(MAX_RECORD_BYTES + 1 - len(head))
    if len(data) > MAX_RECORD_BYTES:
        return Rejected(name, OVERSIZE)
    text, damaged = decode(data)
    return Document(name, text, repairs_of(text, damaged))


def _archive_of(name: Path, data: bytes) -> bytes:
    """A tar with one member."""
    buffer, member = io.BytesIO(), tarfile.TarInfo(str(name))
    member.size = len(data)
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


class _Rejoined(io.RawIOBase):
    """A stream of which `head` has been read before."""

    def __init__(self, head: bytes, stream: IO[bytes]) -> None:
        self._head, self._stream = head, stream

    def readable(self) -> bool:
        """True: this is an input stream."""
        return True

    def readinto(self, target: memoryview) -> int:  # type: ignore[override]
        """Fill `target`; 0 at the end."""
        data = self._head[: len(target)] or self._stream.read(len(target))
        self._head = self._head[len(target) :]
        target[: len(data)] = data
        return len(data)


def _rejoined(head: bytes, stream: IO[bytes]) -> IO[bytes]:
    return io.BufferedReader(_Rejoined(head, stream), 1 << 17)
