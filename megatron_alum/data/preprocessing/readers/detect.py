"""Which reader a file needs, from its own name and first bytes (decompressed) alone, so that shards, resumed runs and
other neighbours cannot change it.

parquet        magic PAR1                      mediawiki      <mediawiki within the first KiB
openwebtext    a tar archive                   wikiextractor  a line begins with `<doc `
jsonl          a line is a JSON object         lines          text without any blank line in its first MiB
text           other text                      (error)        what `sniff.py` knows to be something else

A format given by --format is checked too, where its files can be told from others: a wrong one would read nothing.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_alum.data.preprocessing.readers import sniff
from megatron_alum.data.preprocessing.readers.base import Chunk, Document, Reader, Rejected, Unreadable
from megatron_alum.data.preprocessing.readers.jsonl import JsonLinesReader
from megatron_alum.data.preprocessing.readers.mediawiki import MediawikiReader
from megatron_alum.data.preprocessing.readers.openwebtext import OpenWebTextReader, is_tar
from megatron_alum.data.preprocessing.readers.parquet import ParquetReader
from megatron_alum.data.preprocessing.readers.records import RecordReader, is_small_compressed
from megatron_alum.data.preprocessing.readers.streams import open_stream
from megatron_alum.data.preprocessing.readers.text import BlankLineReader, LinesReader
from megatron_alum.data.preprocessing.readers.wikiextractor import WikiextractorReader

_PLAIN = ("text", "lines", "stories")
"""Formats that take any text."""
_MARKS = {"mediawiki": "<page>", "wikiextractor": "<doc "}
"""What a file of the format has in its first MiB."""


@dataclass(frozen=True)
class ReadOptions:
    """The settings that reach the readers."""

    given: str = "auto"
    """--format"""
    text_key: str = "text"
    wikitext_cleaner: str = "fast"


DEFAULTS = ReadOptions()
READERS: dict[str, Callable[[ReadOptions], Reader]] = {
    "wikiextractor": lambda _options: WikiextractorReader(),
    "jsonl": lambda options: JsonLinesReader(options.text_key),
    "text": lambda _options: BlankLineReader(),
    "lines": lambda _options: LinesReader(),
    "stories": lambda _options: LinesReader(),
    "mediawiki": lambda options: MediawikiReader(options.wikitext_cleaner),
    "parquet": lambda options: ParquetReader(options.text_key),
    "openwebtext": lambda options: OpenWebTextReader(
        lambda head, path: _format_of_head(head, path, replace(options, given="auto")),
        lambda name: READERS[name](options),
    ),
}
"""Format name -> reader."""


def make_reader(name: str, **options: str) -> Reader:
    """The reader called `name`, a format or "auto"; `options` are the fields of ReadOptions."""
    chosen = ReadOptions(**options)
    return SmallFileReader(chosen) if name == "auto" else READERS[name](chosen)


class SmallFileReader:
    """Small compressed files: each is one chunk, whose reader is chosen where it is decompressed.

    Decompressing the heads of fifteen thousand small .bz2 files would take the coordinator minutes.
    """

    def __init__(self, options: ReadOptions) -> None:
        self._options = options

    def chunks(self, path: Path) -> Iterator[Chunk]:
        """The whole file."""
        yield Chunk(str(path), 0, 0, path.stat().st_size)

    def documents(self, chunk: Chunk) -> Iterator[Document | Rejected]:
        """The documents of the file, in whatever format it is."""
        path = Path(chunk.path)
        with open_stream(path) as stream:
            head = stream.read(sniff.SAMPLE_BYTES)
            name = _format_of_head(head, path, self._options)
            if name is None:
                return
            reader = READERS[name](self._options)
            if isinstance(reader, RecordReader):
                yield from reader.stream_documents(stream, chunk.name, head)
                return
        for part in reader.chunks(path):
            yield from reader.documents(part)


def format_to_read(path: Path, options: ReadOptions = DEFAULTS) -> str | None:
    """The format of `path`, None for a file without text, "auto" for one whose format shows when a worker decompresses
    it; ValueError when it is not what --format says, or nothing that is read."""
    return "auto" if is_small_compressed(path) else detect_format(path, options)


def detect_format(path: Path, options: ReadOptions = DEFAULTS) -> str | None:
    """The format of `path`, None for a file without text; ValueError when its first bytes are no text of any kind."""
    with open_stream(path) as stream:
        return _format_of_head(stream.read(sniff.SAMPLE_BYTES), path, options)


def _format_of_head(head: bytes, path: Path, options: ReadOptions) -> str | None:
    """The format of the file at `path` whose first SAMPLE_BYTES, decompressed, are `head`."""
    found = "parquet" if head.startswith(b"PAR1") else "openwebtext" if is_tar(head) else None
    if found or options.given in ("parquet", "openwebtext"):
        return _checked(found, options.given, path)
    if not head.strip():
        return None if len(head) < sniff.SAMPLE_BYTES else "text"
    sniff.check_bytes(head, path)
    if options.given in _PLAIN:
        return options.given
    text = head.decode("utf-8-sig", "replace").lstrip("\0 \t\r\n\v\f")
    return _checked(
        _format_of_text(text, path, options, whole=len(head) < sniff.SAMPLE_BYTES), options.given, path, text
    )


def _format_of_text(text: str, path: Path, options: ReadOptions, *, whole: bool) -> str:
    if "<mediawiki" in text[:1024] or text.startswith("<page>"):
        return "mediawiki"
    if text.startswith("<doc ") or "\n<doc id=" in text:
        return "wikiextractor"
    if sniff.is_json_lines(text, path, whole=whole, text_key=options.text_key):
        return "jsonl"
    if options.given == "auto":
        sniff.check_markup(text, path)
        sniff.check_table(text, path, whole=whole, text_key=options.text_key)
    blank = any(not line.strip() for line in text.rstrip().split("\n"))
    return "text" if blank or "\n" not in text.rstrip() else "lines"


def _checked(found: str | None, given: str, path: Path, text: str = "") -> str:
    """The format to read by: the one `given`, which must be the one `found`, or show in `text`."""
    if given == "auto" and found is not None:
        return found
    if given == found or (given in _MARKS and _MARKS[given] in text) or found is None:
        return given
    raise Unreadable(
        f"`--format` must be the format of {path}, which holds {found}, but is {given} instead. "
        "Give that one, or leave --format out: every file is then looked at.",
        found,
    )
