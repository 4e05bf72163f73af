"""Parquet files in the layout of the wikimedia/wikipedia data set: columns id, url, title, text; a row group is a
chunk.

Only `text` (or --text-key) is needed; `id` or `title` names the documents in reports.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_alum.data.readers.base import MAX_RECORD_BYTES, Chunk, Document, Rejected
from megatron_alum.data.readers.records import OVERSIZE

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
            for group in range(file.num_row_groups):
                column = file.metadata.row_group(group).column(0)
                yield Chunk(str(path), group, column.data_page_offset, span=(group, group + 1))

    def documents(self, chunk: Chunk) -> Iterator[Document | Rejected]:
        """The rows of the row group in order."""
        assert chunk.span is not None
        with _open(Path(chunk.path)) as file:
            keys = [name for name in ("id", "title") if name in file.schema_arrow.names]
            columns = dict.fromkeys([*keys, self.text_key])
            batches = file.iter_batches(ROWS_AT_ONCE, row_groups=[chunk.span[0]], columns=list(columns))
            row = 0
            try:
                for batch in batches:
                    for record in batch.to_pylist():
                        yield self._record(record, keys, f"{chunk.path}, row group {chunk.span[0]}, row {row}")
                        row += 1
            except OSError as error:
                raise _damaged(Path(chunk.path), error) from error

    def _record(self, record: dict[str, Any], keys: list[str], place: str) -> Document | Rejected:
        identity = next((str(record[key]) for key in keys if record[key]), place)
        text = record[self.text_key]
        if not isinstance(text, str):
            return Rejected(identity, f"no string under {self.text_key!r}")
        return Document(identity, text) if len(text) <= MAX_RECORD_BYTES else Rejected(identity, OVERSIZE)


def _open(path: Path) -> Any:
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"`{path}` must be a whole parquet file, but is truncated or damaged ({error}). Fetch it again.")
