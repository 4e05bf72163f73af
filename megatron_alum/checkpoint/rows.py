"""The rows of a run's .jsonl files, separated from lines that do not belong in them.

A line is a row if it is a JSON object with a whole number as `iteration`, and the first with that number. A last line
without its end is one that a kill cut short, or that is being written; any other line is foreign or damaged.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Rows:
    """What a file holds."""

    lines: list[str]
    """the rows as written, each with its newline"""
    values: list[dict[str, Any]]
    """the rows, parsed"""
    foreign: list[int]
    """numbers of the lines, from 1, that are not rows"""

    @classmethod
    def read(cls, path: Path) -> Rows:
        """Everything in the file; nothing where there is none."""
        rows, seen = cls([], [], []), set()
        text = path.read_bytes() if path.is_file() else b""
        for number, line in enumerate(text.split(b"\n")[:-1], start=1):
            row = _parsed(line)
            if row is not None and row["iteration"] not in seen:
                seen.add(row["iteration"])
                rows.lines.append(line.decode() + "\n")
                rows.values.append(row)
            elif line.strip():
                rows.foreign.append(number)
        return rows

    def up_to(self, iteration: int) -> Rows:
        """The rows of the first `iteration` iterations."""
        places = [i for i, row in enumerate(self.values) if row["iteration"] <= iteration]
        return Rows([self.lines[i] for i in places], [self.values[i] for i in places], self.foreign)

    def complaint(self, path: Path) -> str | None:
        """One sentence on the foreign lines; None without any."""
        if not self.foreign:
            return None
        shown = ", ".join(map(str, self.foreign[:5])) + (", ..." if len(self.foreign) > 5 else "")
        number = len(self.foreign)
        return f"WARNING: {path} had {number} line(s) that are not rows of a run (line {shown}); they are left out."


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The row that a line holds, None for anything else."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # neither JSON nor UTF-8, or nested too deeply
        return None
    if not isinstance(row, dict) or type(row.get("iteration")) is not int:
        return None
    return row
