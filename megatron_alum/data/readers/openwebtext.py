"""OpenWebText's layout: a tar whose members are .xz tars of .txt files, one document a file.

Also a single such .xz tar, and a tar of .txt files. In an uncompressed outer tar each inner archive is a chunk of its
own, read by a worker straight from its place; a compressed outer tar is decompressed by the coordinator.
"""

import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from megatron_alum.data.readers.base import MAX_RECORD_BYTES, Chunk, Document, Rejected, decode
from megatron_alum.data.readers.records import OVERSIZE
from megatron_alum.data.readers.streams import COMPRESSED, broken_file, open_stream

_ARCHIVES = (".xz", ".tar", ".gz", ".bz2", ".zst", ".tgz")
MAX_ARCHIVE_BYTES = 64 << 20
"""Inner archives of a compressed outer tar are held in memory: OpenWebText's have 0.6 MB."""


class OpenWebTextReader:
    """`--format openwebtext`."""

    def chunks(self, path: Path) -> Iterator[Chunk]:
        """One chunk an inner archive; a tar without inner archives is one chunk."""
        ordinal = 0
        with _tar(path) as (archive, raw):
            for member in archive:
                if not member.isfile() or not member.name.lower().endswith(_ARCHIVES):
                    continue
                if path.suffix.lower() not in COMPRESSED:
                    span = (member.offset_data, member.offset_data + member.size)
                    yield Chunk(str(path), ordinal, member.offset_data, span=span)
                elif member.size > MAX_ARCHIVE_BYTES:
                    yield Chunk(str(path), ordinal, raw.tell(), oversize=True)
                else:
                    content = archive.extractfile(member)
                    assert content is not None
                    yield Chunk(str(path), ordinal, raw.tell(), data=content.read())
                ordinal += 1
        if ordinal == 0:
            yield Chunk(str(path), 0, 0)

    def documents(self, chunk: Chunk) -> Iterator[Document | Rejected]:
        """The .txt members of the chunk's archive in order."""
        path = Path(chunk.path)
        if chunk.oversize:
            yield Rejected(chunk.name, OVERSIZE)
        elif chunk.data is not None:
            yield from _texts(path, io.BytesIO(chunk.data))
        elif chunk.span is not None:
            with path.open("rb") as stream:
                stream.seek(chunk.span[0])
                yield from _texts(path, io.BytesIO(stream.read(chunk.span[1] - chunk.span[0])))
        else:
            with path.open("rb") as stream:
                yield from _texts(path, stream)


@contextmanager
def _tar(path: Path, source: IO[bytes] | None = None) -> Iterator[tuple[tarfile.TarFile, IO[bytes]]]:
    """(archive, stored stream) of a tar in any compression, read from front to back."""
    raw = source if source is not None else path.open("rb")
    try:
        with open_stream(path, source=raw) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            yield archive, raw
    except tarfile.TarError as error:
        raise broken_file(path, error) from error


def _texts(path: Path, source: IO[bytes]) -> Iterator[Document | Rejected]:
    magic = source.read(6)
    source.seek(-len(magic), io.SEEK_CUR)
    with _tar(path.with_suffix(_suffix_of(magic)), source) as (archive, _raw):
        for member in archive:
            if not member.isfile() or not member.name.lower().endswith(".txt"):
                continue
            if member.size > MAX_RECORD_BYTES:
                yield Rejected(member.name, OVERSIZE)
                continue
            content = archive.extractfile(member)
            assert content is not None
            text, damaged = decode(content.read())
            yield Document(member.name, text, damaged)


def _suffix_of(magic: bytes) -> str:
    """The suffix that stands for a compression, by its first bytes: inner archives are named freely."""
    known = {b"\xfd7zXZ": ".xz", b"BZh": ".bz2", b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst"}
    return next((suffix for head, suffix in known.items() if magic.startswith(head)), ".tar")
