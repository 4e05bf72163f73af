"""The report: the paper's Tables 1 to 9 with ours beside them and Figures 1 and 2, as one HTML page and as Markdown.

Our results are shown as `mean +- deviation (number of seeds)` of the grid point with the best mean of the task's first
metric on dev, with the paper's number beside them (in brackets in Markdown). A cell without either stays empty. The
page needs no other file: it contains the figures as SVG. A system that is not in the paper gets a row in each table
where it has a result.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from megatron_alum.finetune.benchmarks.loading import has_split, load_split
from megatron_alum.finetune.benchmarks.tasks import TASKS
from megatron_alum.finetune.runs.records import write_at_once
from megatron_alum.report.figures import draw_figures
from megatron_alum.report.pages import markdown_line, template
from megatron_alum.report.paper_tables import Cell, Column, PaperTable, Part, paper_figures, paper_sizes, paper_tables
from megatron_alum.report.results import FILE, Results, Shown, best_values, cell

SIZE_HEADINGS = ("train", "dev", "test")


@dataclass(frozen=True)
class Block:
    """A part of a table ready to be written: heading groups, headings, rows of label and cells."""

    groups: tuple[tuple[str, int], ...]
    """(data set, number of columns that it spans)"""
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, tuple[Shown, ...]], ...]


def write_report(results: Results, output: Path, *, data_dir: str | None) -> list[Path]:
    """Write report.html, tables.md and the figures' SVG files into `output`; returns their paths.

    `data_dir` holds the benchmarks' files, to count them for Table 9.
    """
    figures = draw_figures(results)
    sizes = size_rows(data_dir)
    if data_dir is not None and not any(shown.ours for _, counts, _, _ in sizes for shown in counts):
        raise ValueError(f"--data-dir must hold files of a benchmark of Table 9, but {data_dir} holds none.")
    texts = {"report.html": html_page(results, figures, sizes), "tables.md": markdown_page(results, figures, sizes)}
    texts |= {f"figure{number}.svg": svg for number, svg in figures.items()}
    output.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_at_once(output / name, text)
    return [output / name for name in texts]


def block(part: Part, results: Results, *, marked: Iterable[str] = ()) -> Block:
    """One part of a table, filled; systems of `results` that the part does not have come last."""
    rows = []
    for row in part.rows:
        found = [best_values(results.get(row.system, ()), column.cell) for column in part.columns]
        shown = tuple(cell(values, paper) for values, paper in zip(found, row.values, strict=True))
        rows.append((row.name + ("*" if row.system in marked else ""), shown))
    known = {row.system for row in part.rows}
    for system in results:
        shown = tuple(cell(best_values(results[system], column.cell), None) for column in part.columns)
        if system not in known and any(one.ours for one in shown):
            rows.append((system, shown))
    groups = tuple((name, len(list(same))) for name, same in groupby(part.columns, key=lambda column: column.dataset))
    return Block(groups, part.columns, tuple(rows))


def other_results(results: Results) -> list[tuple[str, Cell, str]]:
    """(system, cell, our values) of every result that no column of the paper's tables shows."""
    shown = {column.cell for table in paper_tables() for part in table.parts for column in part.columns}
    given = [(system, (row["task"], row["split"], row["metric"])) for system, rows in results.items() for row in rows]
    others = [(system, key) for system, key in dict.fromkeys(given) if key not in shown]
    return [(system, key, cell(best_values(results[system], key), None).ours) for system, key in others]


def size_rows(data_dir: str | Path | None) -> list[tuple[str, tuple[Shown, ...], str, str]]:
    """Table 9: (data set, train, dev and test, labels, metric); our counts, if the files are found."""
    return [
        (
            row.dataset,
            tuple(Shown(_count(row.task, split, data_dir), getattr(row, split)) for split in SIZE_HEADINGS),
            row.labels,
            row.metric,
        )
        for row in paper_sizes().rows
    ]


def _count(name: str, split: str, data_dir: str | Path | None) -> str:
    """Number of examples in a split, matched and mismatched together; "" unless all their files exist."""
    task = TASKS[name]
    splits = [key for key in (split, f"{split}_mismatched") if key in task.files or (key == "train")]
    if data_dir is None or not splits or not all(has_split(task, data_dir, key) for key in splits):
        return ""
    return f"{sum(len(load_split(task, data_dir, key)) for key in splits):,}"


def markdown_table(table: PaperTable, results: Results) -> str:
    """One of Tables 1 to 8."""
    lines = [f"## Table {table.number}. {table.title}", "", table.note]
    for part in table.parts:
        filled = block(part, results, marked=table.marked)
        lines += ["", markdown_line(["", *(column.heading for column in filled.columns)])]
        lines += [markdown_line(["---"] * (len(filled.columns) + 1))]
        lines += [
            markdown_line([name.replace("*", r"\*"), *(one.markdown for one in cells)]) for name, cells in filled.rows
        ]
    return "\n".join(lines) + "\n"


def markdown_page(
    results: Results, figures: Mapping[int, str], sizes: Iterable[tuple[str, tuple[Shown, ...], str, str]]
) -> str:
    """All tables; figures are links to the SVG files beside the page."""
    parts = [
        "Cells: ours as mean +- deviation (seeds), the paper's number in brackets; empty where there is none.\n",
        *(markdown_table(table, results) for table in paper_tables()),
        *_markdown_others(other_results(results)),
        "\n".join(_markdown_sizes(sizes)) + "\n",
    ]
    for figure in paper_figures():
        if figure.number in figures:
            parts.append(
                f"## Figure {figure.number}. {figure.title}\n\n![](figure{figure.number}.svg)\n\n{figure.note}\n"
            )
    return "\n".join(parts)


def _markdown_others(others: list[tuple[str, Cell, str]]) -> Iterator[str]:
    if others:
        lines = ["## Results that the paper's tables have no column for", ""]
        lines += [markdown_line(["", "task", "split", "metric", "value"]), markdown_line(["---"] * 5)]
        yield "\n".join([*lines, *(markdown_line([system, *key, value]) for system, key, value in others)]) + "\n"


def _markdown_sizes(sizes: Iterable[tuple[str, tuple[Shown, ...], str, str]]) -> Iterator[str]:
    yield from (f"## Table 9. {paper_sizes().title}", "", paper_sizes().note, "")
    yield from (markdown_line(["", *SIZE_HEADINGS, "labels", "metric"]), markdown_line(["---"] * 6))
    for dataset, counts, labels, metric in sizes:
        yield markdown_line([dataset, *(one.markdown for one in counts), labels, metric])


def html_page(
    results: Results, figures: Mapping[int, str], sizes: Iterable[tuple[str, tuple[Shown, ...], str, str]]
) -> str:
    """The whole page as one text."""
    tables = [(table, [block(part, results, marked=table.marked) for part in table.parts]) for table in paper_tables()]
    given = {system: sorted({str(row[FILE]) for row in rows if FILE in row}) for system, rows in results.items()}
    return template("page.html").render(
        tables=tables,
        paper_sizes=paper_sizes(),
        sizes=sizes,
        figures=[(figure, figures.get(figure.number)) for figure in paper_figures()],
        given=given,
        others=other_results(results),
    )
