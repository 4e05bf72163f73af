"""`--format auto`: which reader a file needs, from its own name and first bytes (decompressed) alone, so that shards,
resumed runs and other neighbours cannot change it.

parquet        magic PAR1                      mediawiki      <mediawiki within the first KiB
openwebtext    a tar archive                   wikiextractor  first text is `<doc `
jsonl          first text is `{`               lines          text without any blank line in its first MiB
text           other text                      (error)        NUL bytes, or no UTF-8: not text at all
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from megatron_alum.data.readers.base import Chunk, Document, Reader, Rejected
from megatron_alum.data.readers.jsonl import JsonLinesReader
from megatron_alum.data.readers.mediawiki import MediawikiReader
from megatron_alum.data.readers.openwebtext import OpenWebTextReader
from megatron_alum.data.readers.parquet import ParquetReader
from megatron_alum.data.readers.records import RecordReader, is_small_compressed
from megatron_alum.data.readers.streams import open_stream
from megatron_alum.data.readers.text import BlankLineReader, LinesReader
from megatron_alum.data.readers.wikiextractor import WikiextractorReader

SAMPLE_BYTES = 1 << 20
MAX_UNDECODABLE = 0.05
"""Share of bytes that are no UTF-8 above which a file is taken for binary data (or another encoding)."""

READERS: dict[str, Callable[..., Reader]] = {
    "wikiextractor": lambda **_options: WikiextractorReader(),
    "jsonl": lambda *, text_key, **_options: JsonLinesReader(text_key),
    "text": lambda **_options: BlankLineReader(),
    "lines": lambda **_options: LinesReader(),
    "stories": lambda **_options: LinesReader(),
    "mediawiki": lambda *, wikitext_cleaner, **_options: MediawikiReader(wikitext_cleaner),
    "parquet": lambda *, text_key, **_options: ParquetReader(text_key),
    "openwebtext": lambda **_options: OpenWebTextReader(),
}
"""Format name -> reader, called with the options of `make_reader`."""


def make_reader(name: str, *, text_key: str = "text", wikitext_cleaner: str = "fast") -> Reader:
    """The reader called `name`, a format or "auto"; the options reach the formats that know them."""
    if name == "auto":
        return SmallFileReader(text_key, wikitext_cleaner)
    return READERS[name](text_key=text_key, wikitext_cleaner=wikitext_cleaner)


class SmallFileReader:
    """Small compressed files under `--format auto`: each is one chunk, whose reader is chosen where it is decompressed.

    Decompressing the heads of fifteen thousand small .bz2 files would take the coordinator minutes.
    """

    def __init__(self, text_key: str, wikitext_cleaner: str) -> None:
        self._options = {"text_key": text_key, "wikitext_cleaner": wikitext_cleaner}

    def chunks(self, path: Path) -> Iterator[Chunk]:
        """The whole file."""
        yield Chunk(str(path), 0, 0)

    def documents(self, chunk: Chunk) -> Iterator[Document | Rejected]:
        """The documents of the file, in whatever format it is."""
        path = Path(chunk.path)
        with open_stream(path) as stream:
            head = stream.read(SAMPLE_BYTES)
            name = _format_of_head(head, path)
            if name is None:
                return
            reader = make_reader(name, **self._options)
            if isinstance(reader, RecordReader):
                yield from reader.stream_documents(stream, chunk.name, head)
                return
        for part in reader.chunks(path):
            yield from reader.documents(part)


def format_to_read(path: Path) -> str | None:
    """The format of `path`, None for an empty file, "auto" for one whose format shows when a worker decompresses it."""
    return "auto" if is_small_compressed(path) else detect_format(path)


def detect_format(path: Path) -> str | None:
    """The format of `path`, None for an empty file; ValueError when its first bytes are no text of any kind."""
    with path.open("rb") as raw:
        if raw.read(4) == b"PAR1":
            return "parquet"
    with open_stream(path) as stream:
        return _format_of_head(stream.read(SAMPLE_BYTES), path)


def _format_of_head(head: bytes, path: Path) -> str | None:
    """The format of the file at `path` whose first SAMPLE_BYTES, decompressed, are `head`."""
    if head[257:262] == b"ustar":
        return "openwebtext"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start:
        return None
    undecodable = head.decode("utf-8", "replace").count("\ufffd")
    if b"\0" in head or undecodable > max(64, len(head) * MAX_UNDECODABLE):
        raise ValueError(
            f"`{path}` must be text in a known format ({', '.join(READERS)}), but holds binary data. "
            "Leave it out of --input, or name its format by --format."
        )
    if b"<mediawiki" in start[:1024] or start.startswith(b"<page>"):
        return "mediawiki"
    if start.startswith(b"<doc "):
        return "wikiextractor"
    if start.startswith(b"{"):
        return "jsonl"
    blank = any(not line.strip() for line in head.rstrip().split(b"\n"))
    return "text" if blank or b"\n" not in head.rstrip() else "lines"
