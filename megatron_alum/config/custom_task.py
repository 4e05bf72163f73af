"""Files and columns of --task custom, which megatron-alum finetune and megatron-alum attack read alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class CustomTaskConfig:
    """Task custom

    A task in files of your own: .tsv with header, .csv, .jsonl, .json, .parquet; tags also one a line, spans as SQuAD.
    """

    kind: Literal["classification", "regression", "spans", "choice", "tags"] | None = None
    """kind of the task; by default a classification with --labels, or else what the labels of the training file are:
    numbers that are not all whole are a regression, anything else is classes"""

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
    """class names, in the order of the model's; by default those of the training file, in alphabetical order"""

    def __post_init__(self) -> None:
        """Raise ValueError for labels that no task can have."""
        for name in self.labels:
            if self.labels.count(name) > 1:
                raise ValueError(f"--labels must name each class once, but has {name} {self.labels.count(name)} times.")
        if len(self.labels) == 1:
            raise ValueError(f"--labels must name two or more classes, but names {self.labels[0]} alone.")
        if self.labels and self.kind not in (None, "classification"):
            raise ValueError(f"--labels must be left out with --kind {self.kind}, which has none, but are given.")
