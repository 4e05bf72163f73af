"""Comparison of two metrics files: equal, equal within a tolerance, or the first row and column that differ."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CLOCK_COLUMNS = frozenset({"tokens_per_second"})
"""columns that differ between any two runs"""


@dataclass(frozen=True)
class Difference:
    """One value that differs."""

    iteration: int
    """row"""
    column: str
    """name of the value"""
    first: Any
    """in the first file"""
    second: Any
    """in the second file"""

    @property
    def relative(self) -> float:
        """|first - second| / |second|; infinite if one is missing or not a number."""
        if not isinstance(self.first, (int, float)) or not isinstance(self.second, (int, float)):
            return math.inf
        return abs(self.first - self.second) / abs(self.second) if self.second else math.inf


@dataclass(frozen=True)
class Comparison:
    """What two runs have in common."""

    num_rows: int
    """rows with an iteration that both have"""
    only_in_one: tuple[int, ...]
    """iterations that only one of them has"""
    largest: dict[str, Difference]
    """{column: its largest difference}, columns without one left out"""
    first: Difference | None
    """the first difference beyond the tolerance, in the order of iterations"""


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl, or of the one in a run's folder.

    Raises: ValueError for a path that is neither, and naming a line that is not a row.
    """
    path = Path(path) / "metrics.jsonl" if Path(path).is_dir() else Path(path)
    if not path.is_file():
        raise ValueError(f"A run must be given as its folder or its metrics.jsonl, but {path} does not exist.")
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            rows.append({"iteration": int(json.loads(line)["iteration"]), **json.loads(line)})
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"Line {number} of {path} must be a JSON object with an iteration, but is not.") from None
    return rows


def compare_metrics(
    first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]], *, tolerance: float = 0.0
) -> Comparison:
    """Compare two runs row by row, by iteration; columns of times are left out."""
    left, right = ({row["iteration"]: row for row in rows} for rows in (first, second))
    common = sorted(left.keys() & right.keys())
    largest: dict[str, Difference] = {}
    beyond: Difference | None = None
    for iteration in common:
        a, b = left[iteration], right[iteration]
        for column in [name for name in {**a, **b} if name not in CLOCK_COLUMNS]:
            difference = Difference(iteration, column, a.get(column), b.get(column))
            if difference.first == difference.second:
                continue
            if column not in largest or difference.relative > largest[column].relative:
                largest[column] = difference
            if beyond is None and difference.relative > tolerance:
                beyond = difference
    return Comparison(len(common), tuple(sorted(left.keys() ^ right.keys())), largest, beyond)


def describe_comparison(comparison: Comparison, *, tolerance: float) -> list[str]:
    """Lines for a reader: rows, the largest difference of each column, the first one beyond the tolerance."""
    lines = [f"{comparison.num_rows} common iterations"]
    if comparison.only_in_one:
        ends = f"{comparison.only_in_one[0]} to {comparison.only_in_one[-1]}"
        lines.append(f"{len(comparison.only_in_one)} iterations in one run only ({ends})")
    for column, worst in comparison.largest.items():
        lines.append(f"{column}: differs by {worst.relative:.3g} relative at iteration {worst.iteration}")
    if comparison.first is None:
        lines.append("equal" if not comparison.largest else f"equal within {tolerance:g}")
    else:
        found = comparison.first
        lines.append(
            f"first difference beyond {tolerance:g}: iteration {found.iteration}, {found.column}: "
            f"{found.first} and {found.second}"
        )
    return lines
