"""Render the paper's Tables 1 to 9 and Figures 1 and 2 from results.jsonl files, the paper's numbers beside ours.

    megatron-alum report --output report \\
        --results BERT-base=out/a/results.jsonl ALUM-BERT-base=out/b/results.jsonl

writes OUTPUT/report.html, a page in one file, and OUTPUT/tables.md with figure1.svg and figure2.svg. A file without
SYSTEM= is a row of its own, named by its folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron_alum.config.cli import parse_config


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


def main() -> None:
    """Read, render, write."""
    config = parse_config(ReportConfig, description=__doc__ or "")
    from megatron_alum.report.card import add_evaluation
    from megatron_alum.report.render import write_report
    from megatron_alum.report.results import read_systems

    results = read_systems(config.results)
    written = write_report(results, Path(config.output), data_dir=config.data_dir)
    if config.model_card is not None:
        written.append(add_evaluation(Path(config.model_card), results))
    for path in written:
        print(f"written: {path}")
