"""Compressed files as byte streams: .gz .bz2 .xz .zst, known by their first bytes, whatever the file is called.

A file is read to its last byte: all members, streams or frames of it, zeros that pad them, and one error sentence for
a file that is cut short or has anything else behind its end (Python's own bz2 and lzma files pass over that in
silence, and would lose every stream after a damaged head).

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from megatron_alum.config.extras import require

COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
_BZ2_BLOCK, _BZ2_END = b"\x31\x41\x59\x26\x53\x59", b"\x17\x72\x45\x38\x50\x90"
# "BZh", block size digit, then the 48-bit magic of a block (pi) or of an empty stream's end (sqrt pi).
_BZ2_STREAM = re.compile(rb"BZh[1-9](?:" + re.escape(_BZ2_BLOCK) + b"|" + re.escape(_BZ2_END) + b")")
_BZ2_HEAD = re.compile(rb"BZh[1-9]")
_ZSTD_SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")
_BZ2_OVERLAP = 9
_MAGIC_BYTES = 10
_SCAN_BYTES = 8 << 20
_STORED_BYTES = 1 << 17
"""Read from the file at once."""


def compression_of(head: bytes) -> str:
    """The suffix that stands for the compression of a file which begins with `head`, or "" when it has none."""
    if head.startswith(b"\x1f\x8b"):
        return ".gz"
    if head.startswith(b"\xfd7zXZ\x00"):
        return ".xz"
    if head.startswith(b"\x28\xb5\x2f\xfd") or _ZSTD_SKIPPABLE.match(head):
        return ".zst"
    # the block's magic too, as far as the file goes: "BZh1" alone could begin a text
    block = head[4:_MAGIC_BYTES]
    is_bz2 = _BZ2_HEAD.match(head) and (_BZ2_BLOCK.startswith(block) or _BZ2_END.startswith(block))
    return ".bz2" if is_bz2 else ""


def stored_compression(path: Path) -> str:
    """`compression_of` the file at `path`."""
    with path.open("rb") as raw:
        return compression_of(raw.read(_MAGIC_BYTES))


@contextmanager
def open_stream(path: Path, *, source: IO[bytes] | None = None) -> Iterator[IO[bytes]]:
    """Decompressed bytes of `path` (or of `source`, which has that name); truncation becomes a ValueError.

    `source` must be buffered (`io.BufferedReader`): its first bytes are looked at before they are read.
    """
    raw: Any = source if source is not None else path.open("rb")
    try:
        with raw:
            yield _decompressor(compression_of(raw.peek(_MAGIC_BYTES)[:_MAGIC_BYTES]), raw)
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error) as error:
        raise broken_file(path, error) from error
    except OSError as error:
        if error.errno is not None:  # a real failure of the file system, not of the data
            raise
        raise broken_file(path, error) from error


def broken_file(path: Path | str, error: Exception | str) -> ValueError:
    """The sentence for a compressed file that cannot be read to its end."""
    return ValueError(
        f"`{path}` must be a whole {Path(path).suffix or 'compressed'} file, but is truncated or damaged ({error}). "
        "Fetch it again and check its checksum."
    )


def _decompressor(compression: str, raw: IO[bytes]) -> IO[bytes]:
    if compression == ".gz":
        return gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]
    if compression == ".bz2":
        return _buffered(_Frames(raw, bz2.BZ2Decompressor))
    if compression == ".xz":
        return _buffered(_Frames(raw, lzma.LZMADecompressor))
    if compression == ".zst":
        return _buffered(_Frames(raw, _zstd_frame))
    return raw


def _buffered(frames: "_Frames") -> IO[bytes]:
    return io.BufferedReader(frames, 1 << 17)


class _Frames(io.RawIOBase):
    """All streams of a .bz2 or .xz file, or frames of a .zst file, one after the other, to the last byte of the file.

    Between and after them zeros may stand (xz pads its streams with them, tapes any file); other bytes are an error.
    """

    def __init__(self, raw: IO[bytes], new: Callable[[], Any]) -> None:
        self._raw, self._new = raw, new
        self._frame: Any = None
        """the decompressor of the stream begun, None between two"""
        self._stored = b""

    def readable(self) -> bool:
        """True: this is an input stream."""
        return True

    def readinto(self, target: memoryview) -> int:  # type: ignore[override]
        """Fill `target` with decompressed bytes; 0 after the last byte of the file."""
        while True:
            if self._frame is None and not self._begin():
                return 0
            if not self._stored and getattr(self._frame, "needs_input", True):
                self._stored = self._raw.read(_STORED_BYTES)
                if not self._stored:
                    raise EOFError("Compressed file ended before the end-of-stream marker was reached")
            ready = self._frame.decompress(self._stored, len(target))
            self._stored = b""
            if self._frame.eof:
                self._stored, self._frame = self._frame.unused_data, None
            if ready:
                target[: len(ready)] = ready
                return len(ready)

    def _begin(self) -> bool:
        """Start on the next stream; False at the end of the file."""
        self._stored = self._stored.lstrip(b"\0")
        while not self._stored:
            piece = self._raw.read(_STORED_BYTES)
            if not piece:
                return False
            self._stored = piece.lstrip(b"\0")
        self._frame = self._new()
        return True


class _ZstdFrame:
    """One frame of a .zst file with the methods of `bz2.BZ2Decompressor`, which zstandard's objects lack."""

    def __init__(self, frame: Any, error: type[Exception]) -> None:
        self._frame, self._error = frame, error
        self._ready = memoryview(b"")
        self._complete = False

    @property
    def needs_input(self) -> bool:
        """Whether everything decompressed so far has been taken."""
        return not self._ready and not self._complete

    @property
    def eof(self) -> bool:
        """Whether the frame is complete and taken."""
        return self._complete and not self._ready

    @property
    def unused_data(self) -> bytes:
        """What follows the frame."""
        return self._frame.unused_data

    def decompress(self, data: bytes, max_length: int) -> memoryview:
        """At most `max_length` more bytes."""
        if data:
            try:
                self._ready = memoryview(self._frame.decompress(data))
            except self._error as error:
                raise EOFError(str(error)) from error
            self._complete = self._frame.eof
        taken, self._ready = self._ready[:max_length], self._ready[max_length:]
        return taken


def _zstd_frame() -> _ZstdFrame:
    require("zstandard")
    import zstandard

    frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
    return _ZstdFrame(frame, zstandard.ZstdError)


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


def read_range(path: Path, span: tuple[int, int]) -> bytes:
    """Bytes [start, stop) of `path`; ValueError when the file no longer has all of them."""
    with path.open("rb") as stream:
        stream.seek(span[0])
        data = stream.read(span[1] - span[0])
    if len(data) != span[1] - span[0]:
        raise ValueError(
            f"`{path}` must keep its {span[1]} bytes while it is read, but ends at byte {span[0] + len(data)} now. "
            "Run again when nothing writes to it."
        )
    return data


def read_bz2_span(path: Path, span: tuple[int, int]) -> bytes:
    """Decompress the whole bz2 streams in bytes [start, stop) of `path`."""
    with open_stream(path, source=io.BufferedReader(io.BytesIO(read_range(path, span)))) as stream:
        return stream.read()
