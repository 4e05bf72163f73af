"""Compressed files as byte streams: .gz .bz2 .xz .zst by suffix, with one error sentence for a file cut short.

`bz2_stream_starts` finds where the independent streams of a multistream dump begin (Wikimedia packs 100 pages a
stream), so that workers decompress them side by side; a file of one stream is decompressed by the coordinating
process.
"""

import bz2
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
# "BZh", block size digit, then the 48-bit magic of a block (pi) or of an empty stream's end (sqrt pi).
_BZ2_STREAM = re.compile(rb"BZh[1-9](?:\x31\x41\x59\x26\x53\x59|\x17\x72\x45\x38\x50\x90)")
_BZ2_OVERLAP = 9
_SCAN_BYTES = 8 << 20


@contextmanager
def open_stream(path: Path, *, source: IO[bytes] | None = None) -> Iterator[IO[bytes]]:
    """Decompressed bytes of `path` (or of `source`, whose suffix `path` names); truncation becomes a ValueError."""
    suffix = path.suffix.lower()
    raw = source if source is not None else path.open("rb")
    try:
        with raw:
            yield _decompressor(suffix, raw)
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error) as error:
        raise broken_file(path, error) from error
    except OSError as error:
        if error.errno is not None:  # a real failure of the file system, not of the data
            raise
        raise broken_file(path, error) from error


def broken_file(path: Path | str, error: Exception) -> ValueError:
    """The sentence for a compressed file that cannot be read to its end."""
    return ValueError(
        f"`{path}` must be a whole {Path(path).suffix} file, but is truncated or damaged ({error}). "
        "Fetch it again and check its checksum."
    )


def _decompressor(suffix: str, raw: IO[bytes]) -> IO[bytes]:
    if suffix == ".gz":
        return gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]
    if suffix == ".bz2":
        return bz2.BZ2File(raw)
    if suffix == ".xz":
        return lzma.LZMAFile(raw)
    if suffix == ".zst":
        return _zstd_stream(raw)
    return raw


class _WholeZstd(io.RawIOBase):
    """zstandard's reader ends silently at a truncated frame; this one says so."""

    def __init__(self, raw: IO[bytes]) -> None:
        import zstandard

        self._raw = raw
        self._new = lambda: zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
        self._frame = self._new()
        self._inside = False
        self._error = zstandard.ZstdError
        self._ready = b""
        self._compressed = b""

    def readable(self) -> bool:
        """True: this is an input stream."""
        return True

    def readinto(self, target: memoryview) -> int:  # type: ignore[override]
        """Fill `target` with decompressed bytes; 0 at the end of the last whole frame."""
        while not self._ready:
            piece = self._compressed or self._raw.read(1 << 17)
            if not piece:
                if self._inside:
                    raise EOFError("Compressed file ended before the end-of-stream marker was reached")
                return 0
            try:
                self._ready = self._frame.decompress(piece)
            except self._error as error:
                raise EOFError(str(error)) from error
            self._inside = not self._frame.eof
            self._compressed = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = self._new()
        size = min(len(target), len(self._ready))
        target[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size


def _zstd_stream(raw: IO[bytes]) -> IO[bytes]:
    return io.BufferedReader(_WholeZstd(raw), 1 << 17)


def bz2_stream_starts(path: Path) -> list[int]:
    """Byte offsets of the bz2 streams in `path`, the first 0.

    A stream's magic can also occur by chance inside compressed data (once in 1e24 bytes for its 80 bits), in which case
    decompression from there fails loudly.
    """
    starts: list[int] = []
    with path.open("rb") as stream:
        base, tail = 0, b""
        while piece := stream.read(_SCAN_BYTES):
            window = tail + piece
            starts += [base - len(tail) + match.start() for match in _BZ2_STREAM.finditer(window)]
            base += len(piece)
            tail = window[-_BZ2_OVERLAP:]
    return starts


def read_bz2_span(path: Path, span: tuple[int, int]) -> bytes:
    """Decompress the whole bz2 streams in bytes [start, stop) of `path`."""
    with path.open("rb") as stream:
        stream.seek(span[0])
        data = stream.read(span[1] - span[0])
    try:
        return bz2.decompress(data)
    except (ValueError, OSError) as error:
        raise broken_file(path, error) from error
