"""Render the paper's Tables 1 to 9 and Figures 1 and 2 from results.jsonl files, the paper's numbers beside ours.

    python tools/make_report.py --output report \\
        --results BERT-base=out/a/results.jsonl ALUM-BERT-base=out/b/results.jsonl

A file without SYSTEM= is a row of its own, named by its folder. Cells without a result stay empty.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_alum.config.cli import main_guard, parse_config
from megatron_alum.config.report import ReportConfig
from megatron_alum.report.paper_tables import TABLES
from megatron_alum.report.render import plot_figures, read_results, render_counts, render_table


def main() -> None:
    """Read, render, write."""
    config = parse_config(ReportConfig, description=(__doc__ or "").splitlines()[0])
    results: dict[str, list[dict[str, Any]]] = {}
    for item in config.results:
        system, _, path = ("", "", item) if Path(item).is_file() or "=" not in item else item.partition("=")
        if not Path(path).is_file():
            raise ValueError(f"--results must be results.jsonl files or SYSTEM=FILE, but {item} is neither.")
        results.setdefault(system or Path(path).parent.name, []).extend(read_results([path]))
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    note = "Cells: ours as mean +- deviation (n seeds), the paper's number in brackets; empty where there is none.\n"
    parts = [note, *(render_table(table, results) for table in TABLES), render_counts(config.data_dir)]
    (output / "tables.md").write_text("\n".join(parts), encoding="utf-8")
    print(f"tables: {output / 'tables.md'}")
    for path in plot_figures(results, output):
        print(f"figure: {path}")


if __name__ == "__main__":
    main_guard(main)
