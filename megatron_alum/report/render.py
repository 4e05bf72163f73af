"""Markdown of the paper's tables, filled from results.jsonl files, and Figures 1 and 2.

Ours stand as `mean +- deviation (n seeds)` of the point of the grid whose mean on the task's first metric on dev is
best, the paper's number beside them in brackets. A cell without either stays empty.
"""

from __future__ import annotations

import json
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_alum.finetune.loading import has_split, load_split
from megatron_alum.finetune.summary import mean_and_deviation
from megatron_alum.finetune.tasks import TASKS
from megatron_alum.report.paper_tables import COUNTED_TASKS, Cell, PaperTable

Row = Mapping[str, Any]
FILE = "file"  # key under which a row keeps where it was read
PERCENT_ALREADY = ("f1", "exact_match")  # SQuAD's scorers print percent; everything else is a fraction


def read_results(paths: Iterable[str | Path]) -> list[dict[str, Any]]:
    """Rows of several results.jsonl files, each with its file's name under FILE.

    Raises: ValueError naming file and line of a row that is no result.
    """
    rows = []
    for path in paths:
        for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
            try:
                row = json.loads(line)
                needed = {name: row[name] for name in ("task", "split", "metric", "seed")}
                rows.append({**needed, **row, "value": float(row["value"]), FILE: str(path)})
            except (json.JSONDecodeError, KeyError, TypeError, ValueError):
                raise ValueError(f"{path}:{number} must be a row of results.jsonl, but is {line[:60]!r}.") from None
    return rows


def best_values(rows: Iterable[Row], cell: Cell) -> list[float]:
    """The values of a cell, in percent, one a seed, at the best point of the grid (by dev, else by the cell itself).

    Raises: ValueError where a seed of a point has two results: runs of other settings, or one file given twice.
    """
    task, split, metric = cell
    of_task = [row for row in rows if row["task"] == task]
    points: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    choosing: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    seen: dict[tuple[Any, ...], Row] = {}
    for row in of_task:
        point = tuple(row.get(name) for name in ("model", "method", "learning_rate", "batch_size"))
        if (row["split"], row["metric"]) == (split, metric):
            _refuse_second(seen, (*point, row["seed"]), row)
            points[point].append(row["value"])
        if (row["split"], row["metric"]) == ("dev", TASKS[task].metrics[0]):
            choosing[point].append(row["value"])
    if not points:
        return []
    best = max(points, key=lambda point: statistics.fmean(choosing.get(point) or points[point]))
    scale = 1.0 if metric in PERCENT_ALREADY and TASKS[task].kind == "spans" else 100.0
    return [scale * value for value in points[best]]


def _refuse_second(seen: dict[tuple[Any, ...], Row], key: tuple[Any, ...], row: Row) -> None:
    first = seen.setdefault(key, row)
    if first is not row:
        files = " and ".join(sorted({str(r.get(FILE)) for r in (first, row)}))
        raise ValueError(
            f"--results must hold a seed once for each system, but seed {row['seed']} of {row['task']} by "
            f"{row.get('method')} stands twice in {files}. Give runs of other settings a SYSTEM= of their own."
        )


def format_cell(values: Sequence[float], paper: float | None) -> str:
    """`mean +- deviation (n)` and the paper's number in brackets."""
    text = ""
    if values:
        mean, deviation = mean_and_deviation(list(values))
        spread = "" if deviation is None else f" +- {deviation:.1f}"
        text = f"{mean:.1f}{spread} (n {len(values)})"
    return f"{text} [{paper:.1f}]".strip() if paper is not None else text


def render_table(table: PaperTable, results: Mapping[str, Sequence[Row]]) -> str:
    """One table as Markdown; `results` holds the rows of each system."""
    lines = [
        f"## Table {table.number}. {table.title}",
        "",
        _line(["", *table.columns]),
        _line(["---"] * (len(table.columns) + 1)),
    ]
    for system in (*table.systems, *(name for name in results if name not in table.systems)):
        cells = [
            format_cell(best_values(results.get(system, ()), cell), table.paper.get(system, {}).get(heading))
            for heading, cell in table.columns.items()
        ]
        lines.append(_line([system, *cells]))
    return "\n".join(lines) + "\n"


def render_counts(data_dir: str | Path | None) -> str:
    """Table 9: examples of every split whose files are found below `data_dir`."""
    lines = [
        "## Table 9. The benchmarks and their sizes",
        "",
        "| task | kind | train | dev | test | metrics |",
        "|---|---|---|---|---|---|",
    ]
    for name in COUNTED_TASKS:
        task = TASKS[name]
        counts = [_count(name, split, data_dir) for split in ("train", "dev", "test")]
        lines.append(_line([name, task.kind, *counts, ", ".join(task.metrics)]))
        more = [split for split in task.files if split not in ("train", "dev", "test")]  # mismatched, rounds, ...
        for split in more:
            found = _count(name, split, data_dir)
            where = ["", found] if "test" in split else [found, ""]
            lines.append(_line([f"{name}, {split}", task.kind, "", *where, ", ".join(task.metrics)]))
    return "\n".join(lines) + "\n"


def _count(name: str, split: str, data_dir: str | Path | None) -> str:
    task = TASKS[name]
    if data_dir is None or split not in task.files or not has_split(task, data_dir, split):
        return ""
    return f"{len(load_split(task, data_dir, split)):,}"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def pretraining_curves(results: Mapping[str, Sequence[Row]], cell: Cell) -> dict[str, list[tuple[int, float]]]:
    """Figure 1: {system: [(pre-training iteration, percent)]}; the iteration stands in the model's folder name."""
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


def plot_figures(results: Mapping[str, Sequence[Row]], folder: Path) -> list[Path]:
    """figure1.png (MNLI over pre-training) and figure2.png (tasks by system and method), where there is data."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    written = []
    curves = pretraining_curves(results, ("mnli", "dev", "accuracy"))
    bars = method_means(results)
    for name, present in (("figure1.png", curves), ("figure2.png", bars)):
        if not present:
            continue
        figure = Figure(figsize=(7, 4))
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        if name == "figure1.png":
            for system, points in curves.items():
                axes.plot(*zip(*points, strict=True), marker="o", label=system)
            axes.set_xlabel("pre-training iterations")
            axes.set_ylabel("MNLI matched accuracy (%)")
        else:
            _draw_bars(axes, bars)
        axes.legend()
        figure.tight_layout()
        figure.savefig(folder / name, dpi=150)
        written.append(folder / name)
    return written


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


def _draw_bars(axes: Any, bars: Mapping[str, Mapping[str, float]]) -> None:
    tasks = sorted({task for values in bars.values() for task in values})
    width = 0.8 / len(bars)
    for index, (method, values) in enumerate(bars.items()):
        positions = [tasks.index(task) + index * width for task in values]
        axes.bar(positions, list(values.values()), width, label=method)
    axes.set_xticks([position + 0.4 - width / 2 for position in range(len(tasks))], tasks, rotation=30)
    axes.set_ylabel("dev, first metric (%)")
