"""The numbered lines of a text file, plain or compressed; bytes that are not UTF-8 are reported with their line."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


def open_text(path: Path) -> IO[str]:
    """A UTF-8 text stream of a plain, .gz, .bz2 or .xz file; a byte order mark is dropped, newlines stay as they are.

    Bytes that are not UTF-8 become lone surrogates: a decoder reads ahead, and this lets the caller find the line.
    """
    opener = OPENERS.get(path.suffix.lower(), open)
    return cast(IO[str], opener(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline=""))


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, line without its end).

    Raises: ValueError with file and line for bytes that are not UTF-8, or a damaged archive.
    """
    number = 0
    try:
        with open_text(path) as stream:
            for number, line in enumerate(stream, start=1):
                if any("\ud800" <= character <= "\udfff" for character in (() if line.isascii() else line)):
                    raise ValueError(f"{path}:{number} must be readable UTF-8 text, but has other bytes.")
                yield number, line.rstrip("\r\n")
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        raise _unreadable(f"{path}:{number + 1}", error) from None


def _unreadable(where: str, error: Exception) -> Exception:
    """The error for damaged bytes; a failure of the file system (OSError with an errno) is returned unchanged."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    return ValueError(f"{where} must be readable UTF-8 text, but is not: {error}.")
