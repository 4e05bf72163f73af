"""The account of a run: what was read against what came of it. One that does not close is an error, and nothing is
published.

    records   those that the readers found = documents kept + records skipped, by reason
    bytes     the chunks that were processed, end to end in the files laid end to end: no gap, none twice; a run that
              is no shard of another begins at byte 0 and ends with the last one (merging checks that shards meet)
"""

from collections.abc import Iterable
from dataclasses import dataclass


class OpenAccount(ValueError):
    """The account of a run does not close: its output must not be used, and resuming would not mend it."""


@dataclass
class Account:
    """What has been read so far."""

    records: int = 0
    begin: int = 0
    """first byte read, of all files laid end to end"""
    end: int = 0
    """byte after the last one read"""

    def add(self, records: int, interval: tuple[int, int]) -> None:
        """Add a chunk: its records and its interval of bytes, which must begin where the last one ended."""
        if self.end == 0:
            self.begin = self.end = interval[0]
        if interval[0] != self.end:
            raise _open(f"bytes {self.end} to {interval[0]} of its files have been passed over or read twice")
        self.records += records
        self.end = interval[1]

    def close(self, documents: int, skipped: int, *, first: int, last: int) -> None:
        """Check that every record is a document or skipped, and that the bytes are those from `first` to `last`."""
        if self.records != documents + skipped:
            raise _open(f"{self.records} records were read, but {documents} documents kept and {skipped} skipped")
        if (self.begin, self.end) != (first, last):
            raise _open(f"its files have bytes {first} to {last}, but bytes {self.begin} to {self.end} were read")

    def entry(self, documents: int, skipped: int) -> dict[str, int]:
        """The account as it stands in the manifest."""
        return {
            "records": self.records,
            "documents": documents,
            "skipped": skipped,
            "begin_byte": self.begin,
            "end_byte": self.end,
        }


def joined(entries: Iterable[dict[str, int]], *, last: int) -> dict[str, int]:
    """The account of all shards of one input of `last` bytes, given in order; they must meet."""
    account = Account()
    documents = skipped = 0
    for entry in entries:
        account.add(entry["records"], (entry["begin_byte"], entry["end_byte"]))
        documents, skipped = documents + entry["documents"], skipped + entry["skipped"]
    account.close(documents, skipped, first=0, last=last)
    return account.entry(documents, skipped)


def _open(difference: str) -> OpenAccount:
    return OpenAccount(
        f"The account of a run must close, but {difference}. Nothing is published; run again without --resume, and if "
        "it fails again report it as a fault of the program."
    )
