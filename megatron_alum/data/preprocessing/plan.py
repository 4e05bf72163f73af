"""The input of a run in order: which files, in which format, cut into which chunks, and which of them belong to this
shard.

The stored bytes of all files, laid end to end, are what is divided: a chunk is an interval of them, and the chunks of
a run tile them without gap or overlap, which is checked as they come. With `--num-shards n` the bytes are divided into
n equal ranges; a chunk belongs to the range its first byte lies in. The shards are therefore consecutive, and merged
in order they equal a single run.
"""

from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property
from itertools import accumulate

from megatron_alum.data.preprocessing.readers.base import Chunk, Document, Reader
from megatron_alum.data.preprocessing.readers.detect import ReadOptions, format_to_read, make_reader
from megatron_alum.data.preprocessing.readers.discover import find_inputs
from megatron_alum.data.preprocessing.settings import InputSettings


class InputPlan:
    """The files of `settings` and their sizes, looked up once."""

    def __init__(self, settings: InputSettings) -> None:
        self.settings = settings
        self.files, self.left_out = find_inputs(settings.input)
        """the files to read; those in the same folders that are not read, and why"""
        self.sizes = [path.stat().st_size for path in self.files]
        self._starts = [end - size for end, size in zip(accumulate(self.sizes), self.sizes, strict=True)]
        self._index = {str(path): i for i, path in enumerate(self.files)}
        self._readers: dict[str, Reader] = {}

    @cached_property
    def num_bytes(self) -> int:
        """Stored bytes of all files."""
        return sum(self.sizes)

    @cached_property
    def options(self) -> ReadOptions:
        """The settings that reach the readers."""
        settings = self.settings
        return ReadOptions(settings.format, settings.text_key, settings.wikitext_cleaner)

    @property
    def byte_range(self) -> tuple[int, int]:
        """[begin, end) of this shard in the files laid end to end."""
        n, i = self.settings.num_shards, self.settings.shard_id
        return self.num_bytes * i // n, self.num_bytes * (i + 1) // n

    def listing(self) -> list[list[str | int]]:
        """[path, size] of every file."""
        return [[str(path), size] for path, size in zip(self.files, self.sizes, strict=True)]

    def index_of(self, chunk: Chunk) -> int:
        """Position of the chunk's file among the files."""
        return self._index[chunk.path]

    def interval(self, chunk: Chunk) -> tuple[int, int]:
        """[begin, end) of the chunk in the files laid end to end."""
        start = self._starts[self.index_of(chunk)]
        return start + chunk.offset, start + chunk.end

    def position(self, chunk: Chunk) -> int:
        """The byte, of the files laid end to end, by which the chunk belongs to a shard: its first, or the last of its
        file for one that was decompressed after all of the file had been read."""
        index = self.index_of(chunk)
        return self._starts[index] + min(chunk.offset, self.sizes[index] - 1)

    def chunks(self, next_file: int = 0, next_chunk: int = 0) -> Iterator[tuple[str, Chunk]]:
        """(format, chunk) of this shard from chunk `next_chunk` of file `next_file` on."""
        begin, end = self.byte_range
        for index in range(next_file, len(self.files)):
            if self._starts[index] >= end or self._starts[index] + self.sizes[index] <= begin:
                continue
            skip = next_chunk if index == next_file else 0
            for name, chunk in self._file_chunks(index):
                if self.position(chunk) >= end:
                    return
                if chunk.ordinal >= skip and begin <= self.position(chunk):
                    yield name, chunk

    def reading(self) -> Iterator[tuple[Reader, Chunk]]:
        """(reader, chunk) of the whole input, all shards alike."""
        for index in range(len(self.files)):
            for name, chunk in self._file_chunks(index):
                yield self._reader(name), chunk

    def texts(self, max_chars: int) -> Iterator[str]:
        """Raw texts of the documents from the beginning of the input, all shards alike, about `max_chars` in all."""
        taken = 0
        for reader, chunk in self.reading():
            for document in reader.documents(chunk):
                if isinstance(document, Document):
                    yield document.text
                    taken += len(document.text)
            if taken >= max_chars:
                return

    def _file_chunks(self, index: int) -> Iterator[tuple[str, Chunk]]:
        """(format, chunk) of one file; ValueError when the chunks do not tile it, as when it grows meanwhile."""
        path, size = self.files[index], self.sizes[index]
        if size == 0:
            return
        name = format_to_read(path, self.options)
        reached = ordinal = 0
        # a file without text is read as lines, of which it has none
        for chunk in self._reader(name or "lines").chunks(path):
            assert chunk.ordinal == ordinal, f"{chunk.name} has number {chunk.ordinal}, not {ordinal}"
            if not reached == chunk.offset <= chunk.end <= size:
                break
            yield name or "lines", chunk
            reached, ordinal = chunk.end, ordinal + 1
        if reached != size:
            raise ValueError(
                f"`{path}` must be read to its end of {size} bytes, but its parts end at {reached}. "
                "Run again when nothing writes to it; if nothing does, please report this as a fault of the program."
            )

    def _reader(self, name: str) -> Reader:
        if name not in self._readers:
            self._readers[name] = make_reader(name, **asdict(self.options))
        return self._readers[name]
