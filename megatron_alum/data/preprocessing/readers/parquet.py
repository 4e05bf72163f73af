"""Parquet files in the layout of the wikimedia/wikipedia data set: columns id, url, title, text; a row group is a
chunk.

Only `text` (or --text-key) is needed; `id` or `title` names the documents in reports.
"""

from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

from megatron_alum.config.extras import require
from megatron_alum.data.preprocessing.readers.base import MAX_RECORD_BYTES, OVERSIZE, Chunk, Document, Rejected, tile

ROWS_AT_ONCE = 256
"""Rows decoded together: bounds the memory of a worker by 256 documents and the compressed row group."""


class ParquetReader:
    """`--format parquet`; `text_key` names the column that holds the text."""

    def __init__(self, text_key: str = "text") -> None:
        self.text_key = text_key

    def chunks(self, path: Path) -> Iterator[Chunk]:
        """One chunk a row group."""
        with _open(path) as file:
            if self.text_key not in file.schema_arrow.names:
                raise ValueError(
                    f"`--text-key` must name a column of {path} ({', '.join(file.schema_arrow.names)}), "
                    f"but is {self.text_key} instead."
                )
            ends = _row_group_ends(file.metadata, path.stat().st_size)
            yield from tile(path, (Chunk(str(path), end=end, span=(i, i + 1)) for i, end in enumerate(ends)))

    def documents(self, chunk: Chunk) -> Iterator[Document | Rejected]:
        """The rows of the row group in order; ValueError when they are not as many as the file says."""
        if chunk.span is None:  # a file without row groups
            return
        group, row = chunk.span[0], 0
        with _open(Path(chunk.path)) as file:
            keys = [name for name in ("id", "title") if name in file.schema_arrow.names]
            columns = dict.fromkeys([*keys, self.text_key])
            try:
                for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=list(columns)):
                    for record in batch.to_pylist():
                        yield self._record(record, keys, f"{chunk.path}, row group {group}, row {row}")
                        row += 1
            except OSError as error:
                raise _damaged(Path(chunk.path), error) from error
            if row != (expected := file.metadata.row_group(group).num_rows):
                raise _damaged(Path(chunk.path), f"row group {group} gives {row} of its {expected} rows")

    def _record(self, record: dict[str, Any], keys: list[str], place: str) -> Document | Rejected:
        identity = next((str(record[key]) for key in keys if record[key]), place)
        text = record[self.text_key]
        if not isinstance(text, str):
            return Rejected(identity, f"no string under {self.text_key!r}")
        return Document(identity, text) if len(text) <= MAX_RECORD_BYTES else Rejected(identity, OVERSIZE)


def _row_group_ends(metadata: Any, size: int) -> list[int]:
    """Byte of the file at which each row group ends, by its share of the compressed bytes of all: never past `size`,
    and in the order of the groups, which a file need not keep in its bytes."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    stored = [sum(group.column(i).total_compressed_size for i in range(group.num_columns)) for group in groups]
    total = max(1, sum(stored))
    return [size * reached // total for reached in accumulate(stored)]


def _open(path: Path) -> Any:
    require("pyarrow")
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception | str) -> ValueError:
    return ValueError(f"`{path}` must be a whole parquet file, but is truncated or damaged ({error}). Fetch it again.")
