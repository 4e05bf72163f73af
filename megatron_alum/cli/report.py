"""Render the paper's Tables 1 to 9 and Figures 1 and 2 from results.jsonl files, the paper's numbers beside ours.

    megatron-alum report --output report \\
        --results BERT-base=out/a/results.jsonl ALUM-BERT-base=out/b/results.jsonl

writes OUTPUT/report.html, a page in one file, and OUTPUT/tables.md with figure1.svg and figure2.svg. A file without
SYSTEM= gets a row of its own, named after its folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron_alum.config.cli import parse_config
from megatron_alum.config.places import AnyInput, InputFolder, OutputFolder, check_places


@dataclass(frozen=True)
class ReportConfig:
    """This report"""

    output: OutputFolder
    """folder of report.html, tables.md, figure1.svg and figure2.svg"""
    results: tuple[AnyInput, ...] = ()
    """results.jsonl files; SYSTEM=FILE puts one in that row of the paper's tables (several may share a row)"""
    model_card: InputFolder | None = None
    """exported folder to whose README.md the results are added as its evaluation"""
    data_dir: InputFolder | None = None
    """folder of the benchmarks' files, to count them for Table 9"""


def main() -> None:
    """Read, render, write."""
    config = parse_config(ReportConfig, description=__doc__ or "")
    check_places(config)
    from megatron_alum.finetune.runs.records import write_at_once
    from megatron_alum.report.card import evaluated_card
    from megatron_alum.report.render import write_report
    from megatron_alum.report.results import read_systems

    results = read_systems(config.results)
    card = None if config.model_card is None else evaluated_card(Path(config.model_card), results)
    written = write_report(results, Path(config.output), data_dir=config.data_dir)
    if card is not None:
        write_at_once(*card)
        written.append(card[0])
    for path in written:
        print(f"written: {path}")
