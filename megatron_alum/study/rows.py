"""The results of a study: one JSON object per line, added one whole cell at a time.

    {"scale": "cpu", "cell": "probe/seed1/paper", "seed": 1, "arm": "paper", "measure": "loss-pgd", "radius": 0.05,
     "value": 3.21}

A cell that is in the file is done and never run again; its last row says how long it took, where and with which commit.
The file is replaced atomically, so after a kill a cell is either complete or absent.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_alum.finetune.runs.records import write_at_once

Row = dict[str, Any]
SECONDS = "seconds"
"""measure of the last row of a cell"""


class Results:
    """The rows of one file, grown cell by cell."""

    def __init__(self, path: Path, scale: str) -> None:
        """Read what is there. Raises: ValueError for a line that is no row, or rows of another scale."""
        self.path, self.scale = path, scale
        self.rows: list[Row] = read_rows(path) if path.is_file() else []
        others = {row["scale"] for row in self.rows} - {scale}
        if others:
            raise ValueError(f"{path} must hold rows of scale {scale}, but holds some of {', '.join(sorted(others))}.")
        self._done = {row["cell"] for row in self.rows}

    def has(self, cell: str) -> bool:
        """Whether a cell is done."""
        return cell in self._done

    def add(self, cell: str, rows: Iterable[Mapping[str, Any]], **common: Any) -> None:
        """Keep the rows of a cell that is done now."""
        assert not self.has(cell), cell
        added = [{"scale": self.scale, "cell": cell, **common, **row} for row in rows]
        lines = "".join(json.dumps(row) + "\n" for row in [*self.rows, *added])
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_at_once(self.path, lines)
        self.rows += added
        self._done.add(cell)

    def of(self, **wanted: Any) -> list[Row]:
        """The rows that have all of these values."""
        return [row for row in self.rows if all(row.get(name) == value for name, value in wanted.items())]


def first_metric(rows: Sequence[Row]) -> str:
    """The measure that a task's rows name first."""
    return str(rows[0]["measure"])


def read_rows(path: Path) -> list[Row]:
    """The rows of a file. Raises: ValueError naming a line that is not a row."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            rows.append({**{name: row[name] for name in ("scale", "cell", "measure")}, **row})
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path}:{number} must be a row of a study, but is {line[:60]!r} instead.") from None
    return rows
