"""The paper's Tables 1 to 9 (arXiv 2004.08994) as it prints them, and which of our results fills each cell.

The numbers, including those of the paper's Figures 1 and 2, are in paper.toml beside this file. Our cell is found by
(task, split, metric) in a results.jsonl, and by the system assigned to the file.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

Cell = tuple[str, str, str]  # task, split, metric


@dataclass(frozen=True)
class Column:
    """One column of a table, in the paper's words."""

    dataset: str
    split: str
    metric: str
    cell: Cell
    """our result for this column"""

    @property
    def heading(self) -> str:
        """The heading in one line."""
        return f"{self.dataset} {self.split} {self.metric}"


@dataclass(frozen=True)
class PaperRow:
    """One system of a table."""

    system: str
    source: str
    """the source that the paper quotes for the row; "" for its own results"""
    values: tuple[float | None, ...]
    """percent, one per column; None where the paper prints a dash"""

    @property
    def name(self) -> str:
        """The system with its source, as printed."""
        return f"{self.system} ({self.source})" if self.source else self.system


@dataclass(frozen=True)
class Part:
    """Rows under one set of columns; some tables consist of two such parts."""

    columns: tuple[Column, ...]
    rows: tuple[PaperRow, ...]


@dataclass(frozen=True)
class PaperTable:
    """One table of the paper."""

    number: int
    """in the paper"""
    title: str
    """what it compares, in our words"""
    note: str
    """what a reader must know about its rows"""
    parts: tuple[Part, ...]
    marked: frozenset[str] = frozenset()
    """systems that the note refers to, shown with an asterisk"""


@dataclass(frozen=True)
class SizeRow:
    """One benchmark of Table 9: what the paper prints, and the task whose files can be counted."""

    dataset: str
    train: str
    dev: str
    test: str
    labels: str
    metric: str
    task: str


@dataclass(frozen=True)
class PaperSizes:
    """Table 9."""

    title: str
    note: str
    rows: tuple[SizeRow, ...]


@dataclass(frozen=True)
class PaperFigure:
    """One figure: what ours shows, and what the paper says about its own."""

    number: int
    title: str
    note: str


@cache
def paper_tables() -> tuple[PaperTable, ...]:
    """Tables 1 to 8 in order."""
    return tuple(
        PaperTable(
            number=table["number"],
            title=table["title"],
            note=table["note"],
            parts=tuple(_part(part) for part in table["parts"]),
            marked=frozenset(table.get("marked", ())),
        )
        for table in _document()["tables"]
    )


@cache
def paper_sizes() -> PaperSizes:
    """Table 9."""
    sizes = _document()["sizes"]
    return PaperSizes(sizes["title"], sizes["note"], tuple(SizeRow(*row) for row in sizes["rows"]))


@cache
def paper_figures() -> tuple[PaperFigure, ...]:
    """Figures 1 and 2."""
    return tuple(PaperFigure(**figure) for figure in _document()["figures"])


def _document() -> dict[str, Any]:
    return tomllib.loads(resources.files(__package__).joinpath("paper.toml").read_text(encoding="utf-8"))


def _part(part: dict[str, Any]) -> Part:
    columns = tuple(
        Column(dataset, split, metric, (task, our_split, our_metric))
        for dataset, split, metric, task, our_split, our_metric in part["columns"]
    )
    rows = []
    for system, source, *values in part["rows"]:
        assert len(values) == len(columns), (system, values)
        rows.append(PaperRow(system, source, tuple(None if value == "-" else float(value) for value in values)))
    return Part(columns, tuple(rows))
