"""The input of a run in order: which files, in which format, cut into which chunks, and which of them belong to this
shard.

With `--num-shards n` the stored bytes of all files, laid end to end, are divided into n equal ranges; a chunk belongs
to the range its first byte lies in. The shards are therefore consecutive, and merged in order they equal a single
run.
"""

from collections.abc import Iterator

from megatron_alum.data.readers.base import Chunk, Document, Reader
from megatron_alum.data.readers.detect import format_to_read, make_reader
from megatron_alum.data.readers.discover import find_inputs
from megatron_alum.data.settings import InputSettings


class InputPlan:
    """The files of `settings` and their sizes, looked up once."""

    def __init__(self, settings: InputSettings) -> None:
        self.settings = settings
        self.files = find_inputs(settings.input)
        self.sizes = [path.stat().st_size for path in self.files]
        self._starts = [sum(self.sizes[:i]) for i in range(len(self.sizes))]
        self._index = {str(path): i for i, path in enumerate(self.files)}
        self._readers: dict[str, Reader] = {}

    @property
    def byte_range(self) -> tuple[int, int]:
        """[begin, end) of this shard in the files laid end to end."""
        total, n, i = sum(self.sizes), self.settings.num_shards, self.settings.shard_id
        return total * i // n, total * (i + 1) // n

    def listing(self) -> list[list[str | int]]:
        """[path, size] of every file."""
        return [[str(path), size] for path, size in zip(self.files, self.sizes, strict=True)]

    def index_of(self, chunk: Chunk) -> int:
        """Position of the chunk's file among the files."""
        return self._index[chunk.path]

    def position(self, chunk: Chunk) -> int:
        """First byte of the chunk in the files laid end to end."""
        return self._starts[self.index_of(chunk)] + chunk.offset

    def chunks(self, next_file: int = 0, next_chunk: int = 0) -> Iterator[tuple[str, Chunk]]:
        """(format, chunk) of this shard from chunk `next_chunk` of file `next_file` on."""
        begin, end = self.byte_range
        for index in range(next_file, len(self.files)):
            if self._starts[index] >= end or self._starts[index] + self.sizes[index] <= begin:
                continue
            skip = next_chunk if index == next_file else 0
            for name, chunk in self._file_chunks(index):
                if chunk.ordinal >= skip and begin <= self.position(chunk) < end:
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
        path = self.files[index]
        name = self.settings.format if self.settings.format != "auto" else format_to_read(path)
        if name is None or self.sizes[index] == 0:
            return
        for chunk in self._reader(name).chunks(path):
            yield name, chunk

    def _reader(self, name: str) -> Reader:
        if name not in self._readers:
            self._readers[name] = make_reader(
                name, text_key=self.settings.text_key, wikitext_cleaner=self.settings.wikitext_cleaner
            )
        return self._readers[name]
