"""Keeps `tests/file_times.csv`, the seconds that each test file took, from which the suite is scheduled.

Files start in order of their times, the longest first, so that two workers end together; `--fast` leaves out files of
more than FAST_SECONDS. A file that is not in the table (new, or of less than KEPT_SECONDS) counts as quick. `make
times` runs the suite and replaces the table; it need not be exact.
"""

import csv
import functools
from collections import Counter
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
TABLE = TESTS / "file_times.csv"
FAST_SECONDS = 4.0
KEPT_SECONDS = 1.0


@functools.cache
def read() -> dict[str, float]:
    """{path of a test file from tests/ on: seconds}."""
    with TABLE.open(newline="", encoding="utf-8") as stream:
        return {row["file"]: float(row["seconds"]) for row in csv.DictReader(stream)}


def seconds_of(path: Path) -> float:
    """The table's seconds for a file; 0 for one that is not in it."""
    return read().get(path.relative_to(TESTS).as_posix(), 0.0) if path.is_relative_to(TESTS) else 0.0


def is_long(path: Path) -> bool:
    """Whether `--fast` leaves the file out."""
    return seconds_of(path) > FAST_SECONDS


class FileTimes:
    """A pytest plugin that adds up the time of each file's tests and writes the table when the session ends."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Set-up, call and tear-down; under pytest-xdist the main process gets the reports of all workers."""
        self.seconds[report.nodeid.split("::")[0].removeprefix("tests/")] += report.duration

    def pytest_sessionfinish(self) -> None:
        """The longest first, as they will run."""
        with TABLE.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(("file", "seconds"))
            for file, seconds in self.seconds.most_common():
                if seconds >= KEPT_SECONDS:
                    writer.writerow((file, f"{seconds:.1f}"))
