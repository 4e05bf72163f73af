"""The paper's Tables 1 to 9 as data: which result fills which cell, and the paper's own number where we could trace it.

A cell is (task, split, metric); a row is one of the paper's systems, a column a cell. Ours are read from
results.jsonl by the system a results file is said to hold. The paper's numbers, percentages, and where each was read:

    Table 1                     the paper (arXiv 2004.08994)
    Table 3, ANLI test R1-R3    Papers with Code, ANLI test, "ALUM (RoBERTa-LARGE)"
    Table 4, HellaSWAG test     GPT-3 (arXiv 2005.14165, Table 3.2), which cites ALUM for the best fine-tuned result
    Table 7, SciTail test       CA-MTL (arXiv 2009.09139), which calls the system ALUM_RoBERTa-SMART

Every other number is left empty until someone copies it from the paper. So far only Tables 1 and 6 have been compared
with the printed page; what the other tables hold follows sections 4.3 to 4.5, their titles are ours.

Table 6 of the paper prints exact match above F1 for its RoBERTa rows: the columns are swapped there, not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Cell = tuple[str, str, str]  # task, split, metric


@dataclass(frozen=True)
class PaperTable:
    """One table of the paper."""

    number: int
    """in the paper"""
    title: str
    """what it compares"""
    systems: tuple[str, ...]
    """its rows"""
    columns: Mapping[str, Cell]
    """heading -> the result that fills it"""
    paper: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """system -> heading -> the paper's number, percent"""


BASE = ("BERT-base", "BERT+-base", "ALUM-BERT-base")
LARGE = ("RoBERTa-large", "ALUM-RoBERTa-large")
COMBINED = ("RoBERTa-large", "RoBERTa-large + SMART", "ALUM-RoBERTa-large", "ALUM-RoBERTa-large + SMART")
_SQUAD = {
    "v1.1 F1": ("squad-v1.1", "dev", "f1"),
    "v1.1 EM": ("squad-v1.1", "dev", "exact_match"),
    "v2.0 F1": ("squad-v2", "dev", "f1"),
    "v2.0 EM": ("squad-v2", "dev", "exact_match"),
}
_MNLI = {"MNLI-m": ("mnli", "dev", "accuracy"), "MNLI-mm": ("mnli", "dev_mismatched", "accuracy")}
_ANLI = {
    f"{split} {name}": ("anli-all", key, "accuracy")
    for split in ("dev", "test")
    for name, key in (("R1", f"{split}_r1"), ("R2", f"{split}_r2"), ("R3", f"{split}_r3"), ("All", split))
}
_T1_HEADINGS = (*_SQUAD, *_MNLI)

TABLES = (
    PaperTable(
        1,
        "Standard and adversarial pre-training from scratch: SQuAD and MNLI",
        BASE,
        {**_SQUAD, **_MNLI},
        {
            "BERT-base": dict(zip(_T1_HEADINGS, (88.5, 81.0, 76.5, 72.9, 84.5, 84.4), strict=True)),
            "BERT+-base": dict(zip(_T1_HEADINGS, (89.6, 82.4, 77.8, 74.0, 85.0, 84.8), strict=True)),
            "ALUM-BERT-base": dict(zip(_T1_HEADINGS, (90.8, 83.7, 80.2, 76.6, 85.8, 86.1), strict=True)),
        },
    ),
    PaperTable(
        2,
        "Biomedical entities (test)",
        BASE,
        {
            "BC2GM": ("bc2gm", "test", "entity_f1"),
            "NCBI": ("ncbi-disease", "test", "entity_f1"),
            "JNLPBA": ("jnlpba", "test", "entity_f1"),
        },
    ),
    PaperTable(
        3,
        "Adversarial NLI, trained on MNLI + SNLI + ANLI + FEVER",
        (*BASE, *LARGE),
        _ANLI,
        {"ALUM-RoBERTa-large": {"test R1": 72.3, "test R2": 52.1, "test R3": 48.4}},
    ),
    PaperTable(
        4,
        "Adversarial SQuAD and HellaSWAG",
        (*BASE, *LARGE),
        {
            "AddSent EM": ("adv-squad", "add_sent", "exact_match"),
            "AddSent F1": ("adv-squad", "add_sent", "f1"),
            "AddOneSent EM": ("adv-squad", "add_one_sent", "exact_match"),
            "AddOneSent F1": ("adv-squad", "add_one_sent", "f1"),
            "HellaSWAG dev": ("hellaswag", "dev", "accuracy"),
            "HellaSWAG test": ("hellaswag", "test", "accuracy"),
        },
        {"ALUM-RoBERTa-large": {"HellaSWAG test": 85.6}},
    ),
    PaperTable(
        5,
        "GLUE (dev), continual pre-training",
        LARGE,
        {
            **_MNLI,
            "QQP": ("qqp", "dev", "accuracy"),
            "RTE": ("rte", "dev", "accuracy"),
            "QNLI": ("qnli", "dev", "accuracy"),
            "MRPC": ("mrpc", "dev", "accuracy"),
            "CoLA": ("cola", "dev", "mcc"),
            "SST-2": ("sst2", "dev", "accuracy"),
            "STS-B": ("stsb", "dev", "pearson"),
        },
    ),
    PaperTable(6, "SQuAD (dev), continual pre-training", LARGE, _SQUAD),
    PaperTable(
        7,
        "SNLI, SciTail, SWAG",
        (*LARGE, "ALUM-RoBERTa-large + SMART"),
        {
            "SNLI dev": ("snli", "dev", "accuracy"),
            "SNLI test": ("snli", "test", "accuracy"),
            "SciTail dev": ("scitail", "dev", "accuracy"),
            "SciTail test": ("scitail", "test", "accuracy"),
            "SWAG dev": ("swag", "dev", "accuracy"),
            "SWAG test": ("swag", "test", "accuracy"),
        },
        {"ALUM-RoBERTa-large + SMART": {"SciTail test": 96.8}},
    ),
    PaperTable(8, "Adversarial pre-training and adversarial fine-tuning together", COMBINED, {**_MNLI, **_ANLI}),
)

COUNTED_TASKS = (  # Table 9: the benchmarks and their sizes, from the loaders' own counts
    *("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli", "snli", "scitail", "anli", "fever"),
    *("squad-v1.1", "squad-v2", "adv-squad", "swag", "hellaswag", "bc2gm", "ncbi-disease", "jnlpba"),
)
