"""Every benchmark of the paper (sections 4.3 to 4.5 and the appendix) as a row of one table.

A row says where the official files are, how their rows become examples, what is measured, and the paper's
hyper-parameters. Adding a task is adding a row. `loading.py` reads what a row describes.

`files` gives, per split, alternatives in order of preference; one alternative may join several files with ` + `, and a
pattern may match compressed files. A split's name is the file's role: train, dev, test, or a further one
(dev_mismatched). The paper's search space is the same for all tasks: learning rates 5e-6, 8e-6, 1e-5, 2e-5, batches 16,
32, 64, at most 10 epochs, 512 tokens, dropout of the task layer 0.1 but 0.3 for MNLI and 0.05 for CoLA (section 4.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from megatron_alum.config.finetune import CustomTaskConfig
from megatron_alum.config.words import not_one_of
from megatron_alum.finetune.methods.divergence import Kind

LEARNING_RATES = (5e-6, 8e-6, 1e-5, 2e-5)
BATCH_SIZES = (16, 32, 64)
MAX_EPOCHS = 10
NO_LABEL = ("", "-1", "hidden")  # empty in HellaSWAG, -1 in the `datasets` library, hidden in FEVER as NLI
Columns = tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """One benchmark."""

    name: str
    """key of --task and of results.jsonl"""
    kind: Kind
    """classification | regression | spans | choice | tags"""
    metrics: tuple[str, ...]
    """names in metrics.py; the first chooses the best checkpoint"""
    files: Mapping[str, tuple[str, ...]]
    """split -> alternatives of file patterns"""
    folders: tuple[str, ...] = ()
    """names of the data set's own folder, tried below --data-dir after --data-dir itself"""
    form: str = "tsv"
    """reader for files whose name does not show their form: tsv | csv | jsonl | conll | squad"""
    header: tuple[str, ...] | None = None
    """column names of files without a header line"""
    first: Columns = ("sentence1",)
    """possible names of the (first) text's column"""
    second: Columns | None = None
    """possible names of the second text's column, None for single texts"""
    label: Columns = ("label",)
    """possible names of the label's column; only test files may lack it"""
    labels: tuple[str, ...] = ()
    """classes in the order of their ids; found in the training data for tags"""
    synonyms: Mapping[str, str] = field(default_factory=dict)
    """other spellings of a label in some release -> the one in `labels`"""
    dropped_labels: tuple[str, ...] = ()
    """labels of rows on which annotators did not agree, usually left out ("-" in SNLI)"""
    missing_labels: tuple[str, ...] = NO_LABEL
    """what test files have in place of a label"""
    skips_short_rows: bool = False
    """rows of train and dev with too few columns are left out and counted; an error otherwise"""
    submission: str | None = None
    """name of GLUE's submission file"""
    dropout: float = 0.1
    """dropout of the task layer in the paper"""
    train_parts: tuple[str, ...] = ()
    """tasks whose training sets are combined in place of `files["train"]`"""
    impossible: bool = False
    """questions may have no answer (SQuAD v2.0)"""
    own_files: bool = False
    """`files` are paths of the user's own, read by their endings"""


METRICS_OF: Mapping[Kind, tuple[str, ...]] = {
    "classification": ("accuracy",),
    "regression": ("pearson", "spearman"),
    "spans": ("f1", "exact_match"),
    "choice": ("accuracy",),
    "tags": ("entity_f1",),
}
NLI = ("entailment", "neutral", "contradiction")
NLI_SHORT = {"e": "entailment", "n": "neutral", "c": "contradiction"}
TWO_WAY = ("not_entailment", "entailment")


def _glue(name: str, folder: str, metrics: tuple[str, ...], **changes: object) -> Task:
    """A GLUE task in its official folder: train.tsv, dev.tsv, test.tsv."""
    files = {"train": ("train.tsv", "train"), "dev": ("dev.tsv", "validation"), "test": ("test.tsv", "test")}
    settings: dict[str, object] = {"files": files, "folders": (folder, f"glue/{folder}"), "submission": f"{folder}.tsv"}
    return Task(name=name, metrics=metrics, **{"kind": "classification", **settings, **changes})  # type: ignore[arg-type]


def _tags(name: str, *folders: str) -> Task:
    """An entity data set of the MTL-Bioinformatics-2016 collection."""
    files = {
        "train": ("train.tsv", "train.txt", "train"),
        "dev": ("devel.tsv", "dev.tsv", "dev.txt", "validation"),
        "test": ("test.tsv", "test.txt", "test"),
    }
    return Task(name=name, kind="tags", metrics=("entity_f1",), files=files, folders=folders, form="conll")


def _squad(name: str, *folders: str, version: str, **changes: object) -> Task:
    files: dict[str, tuple[str, ...]] = {
        "train": (f"train-v{version}*.json*", "train"),
        "dev": (f"dev-v{version}*.json*", "validation"),
    }
    metrics = ("f1", "exact_match")
    settings: dict[str, object] = {"kind": "spans", "files": files, "folders": folders, "form": "squad", **changes}
    return Task(name=name, metrics=metrics, **settings)  # type: ignore[arg-type]


_PREMISE = ("sentence1", "premise", "context", "query", "text_a")
_HYPOTHESIS = ("sentence2", "hypothesis", "text_b")
_MNLI_TRAIN = ("train.tsv", "multinli_1.0_train.jsonl*", "multinli_1.0_train*.jsonl*", "train")
_MNLI_DEV = ("dev_matched.tsv", "multinli_1.0_dev_matched.jsonl*", "validation_matched")
_MNLI = _glue(
    "mnli",
    "MNLI",
    ("accuracy",),
    folders=("MNLI", "glue/MNLI", "multinli_1.0", "nli/mnli"),
    files={
        "train": _MNLI_TRAIN,
        "dev": _MNLI_DEV,
        "dev_mismatched": ("dev_mismatched.tsv", "multinli_1.0_dev_mismatched.jsonl*", "validation_mismatched"),
        "test": ("test_matched.tsv", "test_matched"),
        "test_mismatched": ("test_mismatched.tsv", "test_mismatched"),
    },
    first=_PREMISE,
    second=_HYPOTHESIS,
    label=("gold_label", "label"),
    labels=NLI,
    dropped_labels=("-",),
    submission="MNLI-m.tsv",
    dropout=0.3,
)
_ANLI = Task(
    "anli",
    "classification",
    ("accuracy",),
    files={
        "train": ("R1/train.jsonl + R2/train.jsonl + R3/train.jsonl", "train_r1 + train_r2 + train_r3"),
        "dev": ("R1/dev.jsonl + R2/dev.jsonl + R3/dev.jsonl", "dev_r1 + dev_r2 + dev_r3"),
        "dev_r1": ("R1/dev.jsonl", "dev_r1"),
        "dev_r2": ("R2/dev.jsonl", "dev_r2"),
        "dev_r3": ("R3/dev.jsonl", "dev_r3"),
        "test": ("R1/test.jsonl + R2/test.jsonl + R3/test.jsonl", "test_r1 + test_r2 + test_r3"),
        "test_r1": ("R1/test.jsonl", "test_r1"),
        "test_r2": ("R2/test.jsonl", "test_r2"),
        "test_r3": ("R3/test.jsonl", "test_r3"),
    },
    folders=("anli_v1.0", "anli", "ANLI", "nli/anli"),
    form="jsonl",
    first=("context", "premise"),
    second=("hypothesis",),
    labels=NLI,
    synonyms=NLI_SHORT,
)

_ROWS = (
    _glue(
        "cola",
        "CoLA",
        ("mcc", "accuracy"),
        header=("source", "label", "mark", "sentence"),
        first=("sentence",),
        labels=("0", "1"),
        synonyms={"unacceptable": "0", "acceptable": "1"},
        dropout=0.05,
    ),
    _glue(
        "sst2",
        "SST-2",
        ("accuracy",),
        first=("sentence",),
        labels=("0", "1"),
        synonyms={"negative": "0", "positive": "1"},
    ),
    _glue(
        "mrpc",
        "MRPC",
        ("f1_binary", "accuracy"),
        files={
            "train": ("train.tsv", "msr_paraphrase_train.txt", "train"),
            "dev": ("dev.tsv", "validation"),
            "test": ("test.tsv", "msr_paraphrase_test.txt", "test"),
        },
        first=("#1 String", "sentence1"),
        second=("#2 String", "sentence2"),
        label=("Quality", "label"),
        labels=("0", "1"),
        synonyms={"not_equivalent": "0", "equivalent": "1"},
    ),
    _glue(
        "stsb",
        "STS-B",
        ("pearson", "spearman"),
        kind="regression",
        second=("sentence2",),
        label=("score", "label"),
        missing_labels=(*NO_LABEL, "-1.0"),
    ),
    _glue(
        "qqp",
        "QQP",
        ("accuracy", "f1_binary"),
        first=("question1",),
        second=("question2",),
        label=("is_duplicate", "label"),
        labels=("0", "1"),
        synonyms={"not_duplicate": "0", "duplicate": "1"},
        skips_short_rows=True,  # rows broken in two: github.com/nyu-mll/GLUE-baselines/issues/5
    ),
    _MNLI,
    _glue("qnli", "QNLI", ("accuracy",), first=("question",), second=("sentence",), labels=TWO_WAY),
    _glue("rte", "RTE", ("accuracy",), second=("sentence2",), labels=TWO_WAY),
    _glue(
        "wnli",
        "WNLI",
        ("accuracy",),
        second=("sentence2",),
        labels=("0", "1"),
        synonyms={"not_entailment": "0", "entailment": "1"},
    ),
    replace(
        _MNLI,
        name="ax",
        metrics=("mcc", "accuracy"),
        files={
            "train": tuple(f"{folder}/{name}" for folder in ("MNLI", "mnli") for name in _MNLI_TRAIN),
            # GLUE's diagnostic.tsv has no labels, and even with labels it must not be used to choose the checkpoint.
            "dev": tuple(f"{folder}/{name}" for folder in ("MNLI", "mnli") for name in _MNLI_DEV),
            "diagnostic": ("diagnostic-full.tsv", "AX/diagnostic-full.tsv"),
            "test": ("diagnostic.tsv", "AX/diagnostic.tsv", "AX.tsv", "test"),
        },
        folders=("AX", "diagnostic", "glue", "nli"),
        first=("sentence1", "Premise", "premise"),
        second=("sentence2", "Hypothesis", "hypothesis"),
        label=("gold_label", "Label", "label"),
        submission="AX.tsv",
    ),
    Task(
        "snli",
        "classification",
        ("accuracy",),
        files={
            "train": ("snli_1.0_train.jsonl*", "train"),
            "dev": ("snli_1.0_dev.jsonl*", "validation"),
            "test": ("snli_1.0_test.jsonl*", "test"),
        },
        folders=("snli_1.0", "SNLI", "nli/snli"),
        form="jsonl",
        first=_PREMISE,
        second=_HYPOTHESIS,
        label=("gold_label", "label"),
        labels=NLI,
        dropped_labels=("-", "-1"),
    ),
    Task(
        "scitail",
        "classification",
        ("accuracy",),
        files={
            "train": ("scitail_1.0_train.tsv", "train"),
            "dev": ("scitail_1.0_dev.tsv", "validation"),
            "test": ("scitail_1.0_test.tsv", "test"),
        },
        folders=("tsv_format", "SciTailV1.1/tsv_format", "scitail", "nli/scitail"),
        header=("premise", "hypothesis", "label"),
        first=("premise",),
        second=("hypothesis",),
        labels=("neutral", "entails"),
    ),
    Task(
        "fever",
        "classification",
        ("accuracy",),
        files={
            "train": ("train_fitems.jsonl", "train.jsonl", "train"),
            "dev": ("dev_fitems.jsonl", "dev.jsonl", "validation"),
            "test": ("test_fitems.jsonl", "test.jsonl", "test"),
        },
        folders=("nli_fever", "fever", "nli/fever"),
        form="jsonl",
        first=("context", "premise"),
        second=("query", "hypothesis"),
        labels=NLI,
        synonyms={"SUPPORTS": "entailment", "NOT ENOUGH INFO": "neutral", "REFUTES": "contradiction"},
    ),
    _ANLI,
    replace(_ANLI, name="anli-all", train_parts=("mnli", "snli", "anli", "fever")),
    _squad("squad-v1.1", "squad", "SQuAD", version="1.1"),
    _squad("squad-v2", "squad", "SQuAD", version="2.0", impossible=True),
    _squad(
        "adv-squad",
        "squad",
        "SQuAD",
        "squad_adversarial",
        version="1.1",
        files={
            "train": ("train-v1.1*.json*", "train"),
            "dev": ("dev-v1.1*.json*", "validation"),
            "add_sent": ("sample1k-HCVerifyAll.json", "AddSent.json", "AddSent", "AddSent/validation"),
            "add_one_sent": (
                *("sample1k-HCVerifySample.json", "AddOneSent.json"),
                *("AddOneSent", "AddOneSent/validation"),
            ),
        },
    ),
    Task(
        "swag",
        "choice",
        ("accuracy",),
        files={
            "train": ("train.csv", "*train.swag.csv", "train"),
            "dev": ("val.csv", "dev.csv", "*dev.swag.csv", "validation"),
            "test": ("test.csv", "*test.swag.csv", "test"),
        },
        folders=("swag", "SWAG", "swagaf/data", "multiple_choice"),
        form="csv",
        first=("sent1",),
        second=("sent2",),
    ),
    Task(
        "hellaswag",
        "choice",
        ("accuracy",),
        files={
            "train": ("hellaswag_train.jsonl*", "train"),
            "dev": ("hellaswag_val.jsonl*", "hellaswag_val*.jsonl*", "validation"),
            "test": ("hellaswag_test.jsonl*", "test"),
        },
        folders=("hellaswag", "HellaSWAG", "hellaswag/data", "multiple_choice"),
        form="jsonl",
        first=("ctx_a", "ctx"),
        second=("ctx_b",),
    ),
    _tags("bc2gm", "BC2GM-IOB", "BC2GM", "ner/BC2GM-IOB"),
    _tags("ncbi-disease", "NCBI-disease-IOB", "NCBI-disease", "ner/NCBI-disease-IOB"),
    _tags("jnlpba", "JNLPBA", "JNLPBA-IOB", "ner/JNLPBA"),
)
TASKS: dict[str, Task] = {task.name: task for task in _ROWS}


def task_named(name: str) -> Task:
    """The row of `name`.

    Raises: ValueError naming all tasks.
    """
    if name not in TASKS:
        raise ValueError(not_one_of("--task", name, (*TASKS, "custom")))
    return TASKS[name]


def custom_task(custom: CustomTaskConfig, train_file: str | None = None) -> Task:
    """A task in files of the user's own, by their column names; without a kind, it is a classification if it has
    labels."""
    paths = {"train": train_file, "dev": custom.validation_file, "test": custom.test_file}
    kind = custom.kind or ("classification" if custom.labels else "regression")
    return Task(
        name="custom",
        kind=kind,
        metrics=METRICS_OF[kind],
        files={split: (str(Path(path).resolve()),) for split, path in paths.items() if path is not None},
        first=(custom.text_column,),
        second=(custom.text_pair_column,) if custom.text_pair_column else None,
        label=(custom.label_column,),
        labels=custom.labels,
        missing_labels=("",) if kind == "regression" else NO_LABEL,  # here, -1 is an ordinary score
        impossible=kind == "spans",
        own_files=True,
    )
