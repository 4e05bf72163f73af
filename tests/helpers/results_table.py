"""Keeps `tests/slow_results.csv`: the last outcome of every slow test, with its time and the commit it ran on.

A run of some of the tests replaces their rows and keeps the others, so that hours of tests need not run at once.
Each row is written when its test has ended, under a lock: a run that is stopped keeps its rows so far, and
pytest-xdist's workers share the file.
"""

import csv
import fcntl
from datetime import date
from pathlib import Path

import pytest

from megatron_alum.report.machine import current_commit, processor_name

COLUMNS = ("test", "outcome", "seconds", "date", "commit", "processor")


class ResultsTable:
    """A pytest plugin that writes one row for every slow test of the session."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.slow: set[str] = set()
        self.rows: dict[str, dict[str, str]] = {}
        self.run = {"date": date.today().isoformat(), "commit": current_commit(), "processor": processor_name()}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Notes which tests are slow, which the reports do not contain."""
        self.slow = {item.nodeid for item in session.items if "slow" in item.keywords}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Adds up set-up, call and tear-down; the worst outcome of the three counts."""
        if report.nodeid not in self.slow:
            return
        row = self.rows.setdefault(report.nodeid, {"test": report.nodeid, "outcome": "passed", "seconds": "0"})
        if report.outcome != "passed":
            row["outcome"] = report.outcome
        row["seconds"] = f"{float(row['seconds']) + report.duration:.1f}"
        row.update(self.run)
        if report.when == "teardown":
            merge(self.path, {report.nodeid: row})


def merge(path: Path, rows: dict[str, dict[str, str]]) -> None:
    """Replace the rows of `path` whose tests are in `rows`, add the new ones, sort by test."""
    with path.open("a+", newline="", encoding="utf-8") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        stream.seek(0)
        known = {row["test"]: row for row in csv.DictReader(stream)}
        stream.truncate(0)
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(row for _, row in sorted({**known, **rows}.items()))
