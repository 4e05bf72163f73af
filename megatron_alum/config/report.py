"""Settings of `megatron-alum report`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ReportConfig:
    """This report"""

    output: str
    """folder of report.html, tables.md, figure1.svg and figure2.svg"""
    results: tuple[str, ...] = ()
    """results.jsonl files; SYSTEM=FILE puts one in that row of the paper's tables (several may share a row)"""
    model_card: str | None = None
    """exported folder, into whose README.md the results go as its evaluation"""
    data_dir: str | None = None
    """folder of the benchmarks' files, to count them for Table 9"""
