"""Tables of a study's rows: one line per arm or method, one column per measure, and below each table what it shows."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_alum.config.words import counted
from megatron_alum.finetune.runs.summary import mean_and_deviation
from megatron_alum.report.pages import Table
from megatron_alum.study.rows import Row
from megatron_alum.study.statistics import Difference, difference, paired, sentence


@dataclass(frozen=True)
class Column:
    """One measure of a table."""

    heading: str
    """short, with unit"""
    wanted: Mapping[str, Any]
    """what its rows have in common"""
    lower_is_better: bool = False
    """losses"""
    scale: float = 1.0
    """factor from the stored value to the shown one"""
    digits: int = 3
    """after the point"""
    unit: str = ""
    """in sentences"""


Values = dict[str, dict[Hashable, float]]
"""{line of a table: {pair: value}}"""
Found = Sequence[tuple[Column, Mapping[str, Difference]]]
"""of each column, {line: its difference}"""


def pair_of(row: Row) -> Hashable:
    """The key by which two lines are compared: seeds of pre-training and of fine-tuning."""
    return row.get("seed"), row.get("finetune_seed")


def values_of(rows: Iterable[Row], column: Column, line: str) -> Values:
    """The values of a column by the field `line` of the rows and by pair."""
    found: Values = {}
    for row in rows:
        if all(row.get(name) == value for name, value in column.wanted.items()):
            found.setdefault(str(row[line]), {})[pair_of(row)] = column.scale * float(row["value"])
    return found


def differences(
    rows: Sequence[Row], columns: Iterable[Column], line: str, pairs: Sequence[tuple[str, str, str]]
) -> Found:
    """Of each column {name: difference} of (name, line, line that it is compared with), at the pairs that both have."""
    found = []
    for column in columns:
        values = values_of(rows, column, line)
        both = {name: paired(values.get(one, {}), values.get(other, {})) for name, one, other in pairs}
        found.append((column, {name: difference(values) for name, values in both.items() if values}))
    return found


def values_table(rows: Sequence[Row], columns: Sequence[Column], lines: Mapping[str, str], line: str) -> Table:
    """Mean, deviation and number of `lines` {value of the field `line`: title}."""
    by_column = [(column, values_of(rows, column, line)) for column in columns]
    present = [name for name in lines if any(name in values for _, values in by_column)]
    return Table(
        (line, *(column.heading for column in columns)),
        tuple((lines[name], *(_mean(found.get(name, {}), column) for column, found in by_column)) for name in present),
    )


def differences_table(found: Found, lines: Mapping[str, str], first: str) -> Table:
    """Mean, interval and number of the differences of `lines` {name: title}."""
    return Table(
        (first, *(column.heading for column, _ in found)),
        tuple(
            (title, *(_interval(differences.get(name), column) for column, differences in found))
            for name, title in lines.items()
            if any(name in differences for _, differences in found)
        ),
    )


def sentences(found: Found, baseline: str) -> list[tuple[str, str]]:
    """(measures, what their columns show), columns of which the same can be said together."""
    said: dict[str, list[str]] = {}
    for column, differences in found:
        text = sentence(
            differences,
            baseline=baseline,
            lower_is_better=column.lower_is_better,
            unit=column.unit,
            digits=column.digits,
        )
        said.setdefault(text, []).append(column.heading)
    return [(", ".join(headings), text) for text, headings in said.items()]


def _mean(values: Mapping[Hashable, float], column: Column) -> str:
    """Mean, deviation and number; empty where there is nothing."""
    if not values:
        return ""
    mean, deviation = mean_and_deviation(list(values.values()))
    spread = "" if deviation is None else f" +- {deviation:.{column.digits}f}"
    return f"{mean:.{column.digits}f}{spread} ({counted(len(values), 'run')})"


def _interval(found: Difference | None, column: Column) -> str:
    """Mean difference, its interval and number."""
    if found is None:
        return ""
    if found.n == 1:
        return f"{found.mean:+.{column.digits}f} (1 pair)"
    star = "*" if found.is_one else ""
    low, high = (f"{end:+.{column.digits}f}" for end in (found.low, found.high))
    return f"{found.mean:+.{column.digits}f}{star} [{low}, {high}] ({counted(found.n, 'pair')})"
