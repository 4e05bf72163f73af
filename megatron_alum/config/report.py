"""Settings of tools/make_report.py."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ReportConfig:
    """This report"""

    output: str
    """folder of tables.md, figure1.png and figure2.png"""
    results: tuple[str, ...] = ()
    """results.jsonl files; SYSTEM=FILE puts one in that row of the paper's tables (several may share a row)"""
    data_dir: str | None = None
    """folder of the benchmarks' files, to count them for Table 9"""
