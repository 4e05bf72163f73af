"""Tables of a study's rows: one line per arm or method, one column per measure, and below each table what it shows."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
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
Line = Callable[[Row], str]


def pair_of(row: Row) -> Hashable:
    """The key by which two lines are compared: seeds of pre-training and of fine-tuning."""
    return row.get("seed"), row.get("finetune_seed")


def values_of(rows: Iterable[Row], column: Column, line: Line) -> Values:
    """The values of a column by line and pair."""
    found: Values = {}
    for row in rows:
        if all(row.get(name) == value for name, value in column.wanted.items()):
            found.setdefault(line(row), {})[pair_of(row)] = column.scale * float(row["value"])
    return found


def differences(values: Values, baseline: str) -> dict[str, Difference]:
    """Of every other line from `baseline`, at the pairs that both have."""
    reference = values.get(baseline, {})
    found = {name: paired(own, reference) for name, own in values.items() if name != baseline}
    return {name: difference(pairs) for name, pairs in found.items() if pairs}


def compared(
    rows: Sequence[Row], columns: Sequence[Column], lines: Mapping[str, str], *, line: Line, baseline: str, first: str
) -> tuple[Table, Table, tuple[str, ...]]:
    """(values, differences from `baseline`, sentences, each for one column or several) of `lines` {name: title};
    `first` heads the names.
    """
    by_column = [(column, values_of(rows, column, line)) for column in columns]
    present = [name for name in lines if any(name in values for _, values in by_column)]
    headings = (first, *(column.heading for column in columns))
    values = Table(
        headings,
        tuple((lines[name], *(_mean(found.get(name, {}), column) for column, found in by_column)) for name in present),
    )
    deltas = [(column, _in_order(differences(found, baseline), present)) for column, found in by_column]
    moved = Table(
        headings,
        tuple(
            (lines[name], *(_interval(found.get(name), column) for column, found in deltas))
            for name in present
            if name != baseline
        ),
    )
    said: dict[str, list[str]] = {}
    for column, found in deltas:
        text = sentence(found, baseline=baseline, lower_is_better=column.lower_is_better, unit=column.unit)
        said.setdefault(text, []).append(column.heading)
    return values, moved, tuple(f"{'; '.join(headings)}: {text}" for text, headings in said.items())


def _in_order(found: Mapping[str, Difference], names: Sequence[str]) -> dict[str, Difference]:
    return {name: found[name] for name in names if name in found}


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
        return f"{found.mean:+.{column.digits}f} (1 run)"
    bold = "*" if found.is_one else ""
    low, high = (f"{end:+.{column.digits}f}" for end in (found.low, found.high))
    return f"{found.mean:+.{column.digits}f}{bold} [{low}, {high}] ({counted(found.n, 'run')})"
