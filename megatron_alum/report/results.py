"""Reads results.jsonl files, and selects what represents a system in a cell: the best point of its grid on dev."""

from __future__ import annotations

import json
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_alum.config.places import about
from megatron_alum.config.words import counted
from megatron_alum.finetune.benchmarks.tasks import TASKS
from megatron_alum.finetune.runs.summary import mean_and_deviation
from megatron_alum.report.paper_tables import Cell

Row = Mapping[str, Any]
Results = Mapping[str, Sequence[Row]]  # system -> rows of its results.jsonl files
FILE = "file"  # key under which a row stores its file
PERCENT_ALREADY = ("f1", "exact_match")  # SQuAD's scorers print percent; everything else is a fraction


@dataclass(frozen=True)
class Shown:
    """One cell: our value and the paper's as text; "" if there is none."""

    ours: str = ""
    paper: str = ""

    @property
    def markdown(self) -> str:
        """`ours [paper]`."""
        return f"{self.ours} [{self.paper}]".strip() if self.paper else self.ours


def read_systems(items: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    """{system: rows} of arguments FILE or SYSTEM=FILE; a file without a system is named after its folder.

    Raises: ValueError for an argument that is neither, and as `read_results`.
    """
    results: dict[str, list[dict[str, Any]]] = {}
    for item in items:
        system, _, path = ("", "", item) if Path(item).is_file() or "=" not in item else item.partition("=")
        if not Path(path).is_file():
            found = "is a folder" if Path(path).is_dir() else "does not exist"
            raise ValueError(f"--results must be results.jsonl files or SYSTEM=FILE, but {path} {found}.")
        with about("--results"):
            results.setdefault(system or Path(path).parent.name, []).extend(read_results([path]))
    return results


def read_results(paths: Iterable[str | Path]) -> list[dict[str, Any]]:
    """Rows of several results.jsonl files, each with its file's name under FILE.

    Raises: ValueError naming file and line of a row that is not a result.
    """
    rows = []
    for path in paths:
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            raise ValueError(f"{path} must be text, but holds binary data. Give a results.jsonl.") from None
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                needed = {name: row[name] for name in ("task", "split", "metric", "seed")}
                rows.append({**needed, **row, "value": float(row["value"]), FILE: str(path)})
            except (json.JSONDecodeError, KeyError, TypeError, ValueError):
                raise ValueError(f"{path}:{number} must be a row of results.jsonl, but is {line[:60]!r}.") from None
        if not any(row[FILE] == str(path) for row in rows):
            raise ValueError(f"{path} must hold results, but is empty: no run has ended yet.")
    return rows


def best_values(rows: Iterable[Row], cell: Cell) -> list[float]:
    """The values of a cell, in percent, one per seed, at the best point of the grid (on dev, else by the cell itself).

    Raises: ValueError if a seed of a grid point has two results: runs with other settings, or a file given twice.
    """
    task, split, metric = cell
    of_task = [row for row in rows if row["task"] == task]
    chooser = TASKS[task].metrics[0] if task in TASKS else metric  # a task of the user's own has no table
    points: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    choosing: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    seen: dict[tuple[Any, ...], Row] = {}
    for row in of_task:
        point = tuple(row.get(name) for name in ("model", "method", "learning_rate", "batch_size"))
        if (row["split"], row["metric"]) == (split, metric):
            _refuse_second(seen, (*point, row["seed"]), row)
            points[point].append(row["value"])
        if (row["split"], row["metric"]) == ("dev", chooser):
            choosing[point].append(row["value"])
    if not points:
        return []
    best = max(points, key=lambda point: statistics.fmean(choosing.get(point) or points[point]))
    scale = 1.0 if metric in PERCENT_ALREADY else 100.0
    return [scale * value for value in points[best]]


def _refuse_second(seen: dict[tuple[Any, ...], Row], key: tuple[Any, ...], row: Row) -> None:
    first = seen.setdefault(key, row)
    if first is not row:
        files = " and ".join(sorted({str(r.get(FILE)) for r in (first, row)}))
        raise ValueError(
            f"--results must hold a seed once for each system, but seed {row['seed']} of {row['task']} by "
            f"{row.get('method')} occurs twice in {files}. Give runs with other settings their own SYSTEM=."
        )


def cell(values: list[float], paper: float | None) -> Shown:
    """Our values, one per seed, in percent, and the paper's number."""
    ours = ""
    if values:
        mean, deviation = mean_and_deviation(values)
        spread = "" if deviation is None else f" +- {deviation:.1f}"
        ours = f"{mean:.1f}{spread} ({counted(len(values), 'seed')})"
    return Shown(ours, "" if paper is None else f"{paper:.1f}")


def pretraining_curves(results: Mapping[str, Sequence[Row]], cell: Cell) -> dict[str, list[tuple[int, float]]]:
    """Figure 1: {system: [(pre-training iteration, percent)]}; the iteration is read from the model's folder name."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for system, rows in results.items():
        points: dict[int, list[Row]] = defaultdict(list)
        for row in rows:
            found = re.search(r"iter_?(\d+)", str(row.get("model", "")))
            if found:
                points[int(found.group(1))].append(row)
        curve = [
            (step, statistics.fmean(values)) for step in sorted(points) if (values := best_values(points[step], cell))
        ]
        if curve:
            curves[system] = curve
    return curves


def method_means(results: Mapping[str, Sequence[Row]]) -> dict[str, dict[str, float]]:
    """Figure 2's bars: {"method", or "system, method" of several systems: {task: mean of its first metric on dev}}."""
    means: dict[str, dict[str, float]] = defaultdict(dict)
    for system, rows in results.items():
        for method in sorted({row.get("method", "none") for row in rows}):
            mine = [row for row in rows if row.get("method", "none") == method]
            for task in sorted({row["task"] for row in mine if row["task"] in TASKS}):
                values = best_values(mine, (task, "dev", TASKS[task].metrics[0]))
                if values:
                    means[f"{system}, {method}" if len(results) > 1 else method][task] = statistics.fmean(values)
    return dict(means)
