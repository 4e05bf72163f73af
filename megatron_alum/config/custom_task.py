"""Files and columns of --task custom, which tools/finetune.py and tools/attack.py read alike."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CustomTaskConfig:
    """Task custom

    A task in files of your own: .tsv with header, .csv or .jsonl.
    """

    validation_file: str | None = None
    """validation file, the split dev"""
    test_file: str | None = None
    """test file, the split test"""
    text_column: str = "sentence"
    """text column"""
    text_pair_column: str | None = None
    """second text column"""
    label_column: str = "label"
    """label column"""
    labels: tuple[str, ...] = ()
    """class names, in the order of the model's; none makes it a regression"""
